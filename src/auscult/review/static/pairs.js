// The pair screen: shows a pair, listens to keys and buttons, saves verdicts, goes on.

import { eventId, getDifference, getPair, postVerdict } from "./api.js";
import { alignmentOf } from "./alignment.js";
import { Player } from "./player.js";
import { banner, hideBanner, say } from "./saving.js";
import { View, picture } from "./view.js";
import { byId, kilohertz, onClick, probability, residualInWords, seconds, showPath, signed } from "./words.js";

const AHEAD = 3;
const ZOOM = 2;
const LOOK_MS = 400; // no verdict on a pair that was shown for less; two quick presses decide one pair
const HINT = "Tab switches between the two at the same moment · Esc moves the focus to the controls · ? shows all keys";
const ROLES = ["query", "reference"];

export class PairScreen {
  /** `app`: {session, reviewer, queue, saver, decided(id, verdict, undone), finished()}, of main.js. */
  constructor(app) {
    this.app = app;
    this.pairs = new Map(); // id to a promise of the pair
    this.notes = new Map(); // drafts
    this.done = []; // of this tab, for undo: {id, previous: {verdict, note} or null}
    this.decidable = null; // id of the pair that has been shown for long enough
    this.detour = null; // another candidate of the query, which is not in the queue
    this.alignment = null;
    const sounds = Object.fromEntries([...ROLES, "difference"].map((role) => [role, byId(`${role}-audio`)]));
    this.player = new Player(sounds, (kind, role) => this.#heard(kind, role));
    this.view = new View({
      plots: { query: byId("query-plot"), reference: byId("reference-plot") },
      axes: { query: byId("query-axis"), reference: byId("reference-axis") },
      seek: (role, time) => this.player.seek(role, time),
      changed: () => this.#movePlayhead(),
    });
    if (app.session.frequency_ticks) this.view.frequencyTicks = app.session.frequency_ticks;
    this.#buttons();
    const frame = () => {
      this.player.frame();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  /** Forget what belongs to a reviewer. */
  reset() {
    this.pairs.clear();
    this.notes.clear();
    this.done = [];
    this.detour = null;
  }

  async open(id = this.app.queue.current) {
    this.wanted = id;
    this.#seen(null);
    this.app.saver.dismiss();
    byId("pair").setAttribute("aria-busy", "true");
    let pair;
    try {
      pair = await this.#fetch(id);
    } catch (error) {
      this.pairs.delete(id);
      if (this.wanted === id) banner(`This pair could not be fetched. ${error.message}`, [["Retry (R)", () => (hideBanner(), this.open(id))], ["Next", () => (hideBanner(), this.step(1))]]);
      return;
    }
    if (this.wanted !== id) return;
    this.alignment = alignmentOf(pair);
    this.#describe(pair);
    const pictures = this.view.load(this.alignment);
    this.player.load(this.alignment);
    this.#movePlayhead();
    await pictures;
    if (this.wanted !== id) return;
    byId("pair").dataset.shown = id;
    byId("pair").setAttribute("aria-busy", "false");
    this.looking = setTimeout(() => this.#seen(id), LOOK_MS);
    if (this.decidedAt) {
      const start = this.decidedAt;
      this.decidedAt = null;
      requestAnimationFrame(() => performance.measure("next-pair", { start, end: performance.now() })); // the tests read this
    }
    for (const next of this.app.queue.ahead(AHEAD)) this.#ahead(next);
  }

  leave() {
    this.player.stop();
    this.wanted = null;
    this.#seen(null);
  }

  /** From now on the pair may be decided; null: none may. */
  #seen(id) {
    clearTimeout(this.looking);
    this.decidable = id;
    byId("pair").dataset.decidable = id ?? "";
  }

  step(by) {
    if (this.app.saver.busy) return;
    if (this.detour) this.detour = null; // back to the queue, whatever the direction
    else if (!this.app.queue.step(by)) return say(by > 0 ? "This is the last pair of the queue." : "This is the first pair of the queue.");
    this.open();
  }

  async decide(verdict) {
    const { app } = this;
    const pair = this.alignment?.pair;
    if (!pair || app.saver.busy || this.wanted !== pair.pair_id) return;
    if (this.decidable !== pair.pair_id) return say("Not saved: this pair was not yet to be seen. Look, then decide.");
    const gone = ROLES.filter((role) => pair[role].missing || this.view.failed.has(role));
    if (gone.length && verdict !== "unsure") return say(`Not saved: the ${gone.join(" and the ")} cannot be seen or heard, so only “unsure” (F) can be said.`);
    const before = app.queue.decided.get(pair.pair_id) ?? pair.verdict;
    const previous = before ? { verdict: before, note: pair.note ?? "" } : null;
    this.decidedAt = performance.now();
    const note = byId("note").value.trim();
    const event = { event_id: eventId(), pair_id: pair.pair_id, reviewer: app.reviewer, verdict, note };
    this.#press(verdict);
    const answer = await app.saver.save(event, `“${verdict}” for this pair`, postVerdict);
    if (!answer) {
      this.decidedAt = null;
      this.#press(app.queue.decided.get(pair.pair_id));
      return;
    }
    this.#keep(pair, verdict, note);
    this.done.push({ id: pair.pair_id, previous });
    app.decided(pair.pair_id, verdict);
    say(`Saved: ${verdict}.`);
    if (this.detour) {
      this.detour = null;
      this.open();
    } else if (app.queue.advance()) {
      this.open();
    } else {
      this.decidedAt = null;
      app.finished();
    }
  }

  /** Take back the last verdict of this tab, or that of the pair shown, and show its pair. */
  async undo() {
    const { app } = this;
    if (app.saver.busy) return;
    const shown = this.alignment?.pair.pair_id;
    const last = this.done.at(-1);
    const id = last?.id ?? (app.queue.decided.has(shown) ? shown : app.queue.latest);
    if (!id) return say("Nothing to undo here. Untick “undecided only” (above, Queue), go back with ← to the pair, then press U.");
    const { verdict, note } = last?.previous ?? { verdict: "withdrawn", note: "" };
    const again = last?.previous ? verdict : null;
    const event = { event_id: eventId(), pair_id: id, reviewer: app.reviewer, verdict, note };
    if (!(await app.saver.save(event, "the undo", postVerdict))) return;
    this.done.pop();
    const pair = await this.#fetch(id).catch(() => null);
    if (pair) {
      if (!again) this.notes.set(id, pair.note ?? "");
      this.#keep(pair, again, note);
    }
    app.decided(id, again, true);
    this.detour = app.queue.goTo(id) ? null : id;
    app.show("pair");
    await this.open(id);
    say(again ? `Undone: this pair is “${again}” again.` : "Undone: this pair is undecided again.");
  }

  key(event, name) {
    const { player, view } = this;
    const act = {
      " ": () => player.toggle(),
      1: () => player.play("query"),
      2: () => player.play("reference"),
      3: () => this.#difference(),
      l: () => player.toggleLoop(),
      m: () => this.#switchScale(),
      "+": () => this.#zoom(1 / ZOOM),
      "=": () => this.#zoom(1 / ZOOM),
      "-": () => this.#zoom(ZOOM),
      0: () => view.reset(),
      arrowleft: () => this.step(-1),
      arrowright: () => this.step(1),
      n: () => byId("note").focus(),
      u: () => this.undo(),
      a: () => this.decide("replication"),
      s: () => this.decide("similar"),
      d: () => (event.shiftKey ? this.#difference() : this.decide("different")),
      f: () => this.decide("unsure"),
    }[name];
    if (!act || !this.alignment) return false;
    if (!event.repeat || "+-=".includes(name) || name.startsWith("arrow")) act();
    return true;
  }

  /** Tab, while the focus is on the player or nowhere. */
  tab() {
    this.player.swap();
    say(`Listening to the ${this.player.side}.`);
  }

  #fetch(id) {
    if (!this.pairs.has(id)) {
      this.pairs.set(id, getPair(id, this.app.reviewer));
      if (this.pairs.size > 50) this.pairs.delete(this.pairs.keys().next().value);
    }
    return this.pairs.get(id);
  }

  async #ahead(id) {
    try {
      const pair = await this.#fetch(id);
      this.view.addresses(alignmentOf(pair)).forEach(picture);
    } catch {
      this.pairs.delete(id); // fetched, and complained about, when its turn comes
    }
  }

  #keep(pair, verdict, note) {
    pair.verdict = verdict;
    if (verdict) {
      pair.note = note;
      this.notes.delete(pair.pair_id);
    }
  }

  #describe(pair) {
    const { queue, session } = this.app;
    const names = session.kind === "dedup" ? { query: "First clip", reference: "Second clip" } : { query: "Query", reference: "Reference" };
    for (const role of ROLES) {
      const side = pair[role];
      byId(`${role}-role`).textContent = names[role];
      byId(`${role}-caption`).textContent = side.caption ?? "";
      byId(`${role}-caption`).title = side.caption ?? "";
      byId(`${role}-caption`).hidden = !side.caption;
      showPath(byId(`${role}-path`), side.path);
      byId(`${role}-meta`).textContent = [seconds(side.duration_s), side.sample_rate_hz ? kilohertz(side.sample_rate_hz) : null].filter(Boolean).join(" · ");
    }
    byId("place").textContent = this.detour ? "aside" : `${queue.place + 1} / ${queue.list.length}`;
    byId("facts").replaceChildren(...this.#facts(pair));
    this.#others(pair);
    byId("note").value = this.notes.get(pair.pair_id) ?? pair.note ?? "";
    this.#hint(HINT);
    byId("previous").disabled = !this.detour && queue.place <= 0;
    byId("next").disabled = !this.detour && queue.place >= queue.list.length - 1;
    byId("play-difference").disabled = Boolean(pair.query.missing || pair.reference.missing) || (pair.difference && !Number.isFinite(pair.difference_db));
    byId("loop").disabled = !(pair.spans ?? []).length;
    byId("match").disabled = !Number.isFinite(pair.level_db?.query) || !Number.isFinite(pair.level_db?.reference);
    this.#press(queue.decided.get(pair.pair_id) ?? (this.detour ? pair.verdict : null));
  }

  #facts(pair) {
    const facts = [];
    const fact = (name, value, title) => {
      const shown = document.createElement("span");
      shown.title = title;
      shown.append(`${name} `, Object.assign(document.createElement("b"), { textContent: value }));
      facts.push(shown);
    };
    if (pair.score !== undefined && pair.score !== null) {
      const flagged = pair.flagged === undefined ? "" : pair.flagged ? " · flagged" : " · not flagged";
      const tau = !Number.isFinite(pair.tau) ? "" : this.#nothingFlagged(pair) ? " (τ: none, nothing could be flagged)" : ` (τ ${pair.tau.toFixed(2)}${flagged})`;
      fact("score", `${pair.score.toFixed(2)}${tau}`, "How close the two are, beyond what is usual; at τ and above a pair is flagged");
    } else if (this.app.session.blind) {
      fact("blind:", "scores and paths are withheld", "The server does not send them");
    }
    if (Number.isFinite(pair.p_value)) fact("p", probability(pair.p_value), "Share of unrelated sounds that score as high");
    if (Number.isFinite(pair.similarity)) fact("similarity", pair.similarity.toFixed(2), "Before normalization");
    if (Number.isFinite(pair.lag_s)) fact("lag", `${signed(pair.lag_s, 2)} s`, "Query time minus reference time; the reference is drawn shifted by it");
    if (Number.isFinite(pair.tempo) && Math.abs(pair.tempo - 1) > 1e-3) fact("tempo", `× ${pair.tempo.toFixed(3)}`, "Reference seconds per query second; the pictures meet where the strongest span begins");
    if (Number.isFinite(pair.pitch_semitones) && Math.abs(pair.pitch_semitones) > 0.05) fact("pitch", `${signed(pair.pitch_semitones, 1)} semitones`, "By which the query lies above the reference");
    return facts;
  }

  /** Whether no score was high enough to be flagged: the threshold then lies just above the highest, and says nothing. */
  #nothingFlagged(pair) {
    const { session } = this.app;
    const flagged = session.flagged_count ?? session.counts?.flagged;
    if (flagged !== 0 || pair.flagged) return false;
    return session.rule === undefined ? pair.tau.toFixed(2) === pair.score.toFixed(2) : session.rule === "fdr";
  }

  /** Buttons to the lower ranks of the same query, and back. */
  #others(pair) {
    const buttons = (pair.others ?? []).filter((id) => id !== pair.pair_id).map((id, place) => this.#way(`#${place + 2}`, id));
    if (this.detour) buttons.push(this.#way("back to the queue", null));
    const words = this.detour ? [] : buttons.length ? ["other candidates "] : [];
    byId("others").replaceChildren(...words, ...buttons);
  }

  #way(text, id) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, className: "small" });
    onClick(button, () => {
      if (this.app.saver.busy) return;
      this.detour = id;
      this.open(id ?? this.app.queue.current);
    });
    return button;
  }

  #press(verdict) {
    for (const button of document.querySelectorAll("[data-verdict]")) button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }

  /** A note changed after the verdict is saved with the same verdict. */
  async #noteLeft() {
    const pair = this.alignment?.pair;
    const verdict = pair && this.app.queue.decided.get(pair.pair_id);
    const note = byId("note").value.trim();
    if (!verdict || this.app.saver.busy || note === (pair.note ?? "")) return;
    const event = { event_id: eventId(), pair_id: pair.pair_id, reviewer: this.app.reviewer, verdict, note };
    if (await this.app.saver.save(event, "the note", postVerdict)) {
      this.#keep(pair, verdict, note);
      say("Saved: note.");
    }
  }

  /** The difference takes a moment to compute, so it is made when asked for. */
  async #difference() {
    const { pair } = this.alignment;
    if (pair.query.missing || pair.reference.missing) return;
    if (!pair.difference) {
      this.#hint("Computing the difference…");
      try {
        Object.assign(pair, await getDifference(pair));
      } catch (error) {
        this.#hint(`The difference could not be fetched. ${error.message}`);
        return;
      }
    }
    if (this.alignment.pair !== pair) return; // another pair is shown by now
    const decibel = pair.difference_db;
    byId("play-difference").disabled = !Number.isFinite(decibel);
    if (!Number.isFinite(decibel)) {
      this.#hint(`There is no difference to hear: ${pair.difference.reason ?? "the two cannot be subtracted"}.`);
      return;
    }
    if (this.player.side === "difference" && this.player.playing) this.player.pause();
    else this.player.play("difference");
    this.#hint(`Difference ${signed(decibel, 1)} dB: ${residualInWords(decibel)}`);
  }

  #zoom(factor) {
    const { moment, side } = this.player;
    const time = side === "reference" ? moment.reference + this.alignment.shift : moment.query;
    const [start, end] = this.view.shown;
    this.view.zoom(factor, time >= start && time <= end ? time : undefined);
  }

  #switchScale() {
    this.view.setScale(this.view.scale === "mel" ? "linear" : "mel");
    byId("scale-word").textContent = this.view.scale === "mel" ? "Mel" : "Linear";
    say(`Frequencies are ${this.view.scale} now.`);
  }

  #hint(text) {
    byId("hint").textContent = text;
    byId("hint").classList.toggle("keys-only", text === HINT); // of no use on a phone
  }

  #movePlayhead() {
    if (!this.alignment) return;
    const { moment, side } = this.player;
    this.view.playhead(moment, side);
    const shown = (role) => {
      const time = moment[role];
      return time < 0 || time > this.alignment.pair[role].duration_s + 0.01 ? "–" : seconds(time, 2, 2);
    };
    byId("clock").textContent = `${shown("query")} | ${shown("reference")}`;
  }

  #heard(kind, role) {
    if (kind === "time") return this.#movePlayhead();
    if (kind === "error") {
      this.#hint(`The ${role} could not be played. Is the server still running? Press ${{ query: 1, reference: 2, difference: 3 }[role]} to try again.`);
      return;
    }
    const { player } = this;
    const pressed = (id, on) => byId(id).setAttribute("aria-pressed", String(on));
    for (const side of [...ROLES, "difference"]) {
      pressed(`play-${side}`, player.playing && player.side === side);
      if (side !== "difference") byId(`${side}-plot`).parentElement.classList.toggle("listening", player.side === side);
    }
    byId("toggle-word").textContent = player.playing ? "Pause" : "Play";
    pressed("loop", Boolean(player.loop));
    pressed("match", player.matching);
  }

  #buttons() {
    const { player, view } = this;
    const acts = {
      "play-query": () => player.play("query"),
      "play-reference": () => player.play("reference"),
      "play-difference": () => this.#difference(),
      toggle: () => player.toggle(),
      swap: () => this.tab(),
      loop: () => player.toggleLoop(),
      match: () => player.setMatching(!player.matching),
      "zoom-in": () => this.#zoom(1 / ZOOM),
      "zoom-out": () => this.#zoom(ZOOM),
      "zoom-reset": () => view.reset(),
      scale: () => this.#switchScale(),
      previous: () => this.step(-1),
      next: () => this.step(1),
      undo: () => this.undo(),
    };
    for (const [id, act] of Object.entries(acts)) onClick(byId(id), act);
    for (const button of document.querySelectorAll("[data-verdict]")) onClick(button, () => this.decide(button.dataset.verdict));
    byId("note").addEventListener("input", () => this.alignment && this.notes.set(this.alignment.pair.pair_id, byId("note").value));
    byId("note").addEventListener("blur", () => this.#noteLeft());
  }
}
