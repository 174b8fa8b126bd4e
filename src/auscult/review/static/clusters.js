// The gallery of a cluster: which of its clips are one sound, and which of them is kept.

import { eventId, getCluster, postCluster, spectrogramUrl } from "./api.js";
import { banner, hideBanner, say } from "./saving.js";
import { picture } from "./view.js";
import { byId, element, kilohertz, onClick, seconds, showPath } from "./words.js";

const CHUNK = 48; // cards made at once; more when one scrolls towards the end
const PICTURE_PX = 400;
const NAMES = { all_one: "all one", split: "a split", not_duplicates: "not duplicates" };

export class ClusterScreen {
  constructor(app) {
    this.app = app;
    this.list = byId("members");
    this.sound = byId("member-audio");
    this.cluster = null;
    this.done = [];
    this.made = 0;
    this.pictures = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && this.#picture(entry.target)), { rootMargin: "300px" });
    this.end = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.#more(), { rootMargin: "600px" });
    for (const kind of ["play", "pause", "ended"]) this.sound.addEventListener(kind, () => this.#playing());
    this.sound.addEventListener("timeupdate", () => this.#playhead());
    this.sound.addEventListener("error", () => this.sound.getAttribute("src") && say("This clip could not be played. Is the server still running?"));
    for (const button of document.querySelectorAll("[data-decision]")) onClick(button, () => this.decide(button.dataset.decision));
    onClick(byId("cluster-undo"), () => this.undo());
    onClick(byId("cluster-previous"), () => this.step(-1));
    onClick(byId("cluster-next"), () => this.step(1));
  }

  async open(key = this.app.queue.current) {
    this.wanted = key;
    this.app.saver.dismiss();
    let cluster;
    try {
      cluster = await getCluster(key, this.app.reviewer);
    } catch (error) {
      if (this.wanted === key) banner(`This cluster could not be fetched. ${error.message}`, [["Retry (R)", () => (hideBanner(), this.open(key))]]);
      return;
    }
    if (this.wanted !== key) return;
    this.#stop();
    this.cluster = cluster;
    const place = new Map(cluster.members.map((member, at) => [member.clip_id, at]));
    this.cuts = cutsOf(cluster, place);
    this.kept = new Set((cluster.kept?.length ? cluster.kept : cluster.members.filter((member) => member.kept).map((member) => member.clip_id)).map((id) => place.get(id)));
    this.focus = 0;
    this.made = 0;
    this.list.replaceChildren();
    this.list.classList.toggle("few", cluster.members.length <= 6);
    this.pictures.disconnect();
    this.#more();
    this.list.scrollTop = 0;
    byId("cluster-note").value = cluster.note ?? "";
    const { queue } = this.app;
    byId("cluster-place").textContent = `${queue.place + 1} / ${queue.list.length}`;
    byId("cluster-previous").disabled = queue.place <= 0;
    byId("cluster-next").disabled = queue.place >= queue.list.length - 1;
    byId("cluster").dataset.shown = key;
    this.#redraw();
  }

  leave() {
    this.#stop();
    this.wanted = null;
  }

  step(by) {
    if (this.app.saver.busy) return;
    if (this.app.queue.step(by)) this.open();
    else say(by > 0 ? "This is the last cluster of the queue." : "This is the first cluster of the queue.");
  }

  async decide(decision) {
    const { app, cluster } = this;
    if (!cluster || app.saver.busy || this.wanted !== cluster.cluster_key) return;
    const { members } = cluster;
    if (decision === "split" && !this.cuts.size) return say("Split first: S on the first clip of a new group, or “split here” above it.");
    const cuts = decision === "all_one" ? new Set() : decision === "not_duplicates" ? new Set(members.keys()) : this.cuts;
    const groups = runs(members.length, cuts);
    if (groups.length === members.length) decision = "not_duplicates"; // the same thing in other words
    const event = {
      event_id: eventId(),
      cluster_key: cluster.cluster_key,
      reviewer: app.reviewer,
      decision,
      groups: groups.map((group) => group.map((place) => members[place].clip_id)),
      kept: groups.map((group) => members[this.#keptOf(group)].clip_id),
      note: byId("cluster-note").value.trim(),
    };
    if (!(await app.saver.save(event, `“${NAMES[decision]}” for this cluster`, postCluster))) return;
    this.done.push({ key: cluster.cluster_key, previous: cluster.decision ? cluster : null });
    app.decided(cluster.cluster_key, decision);
    say(`Saved: ${NAMES[decision]}.`);
    if (app.queue.advance()) this.open();
    else app.finished();
  }

  async undo() {
    const { app } = this;
    if (app.saver.busy) return;
    const shown = this.cluster?.cluster_key;
    const last = this.done.at(-1);
    const key = last?.key ?? (app.queue.decided.has(shown) ? shown : app.queue.latest);
    if (!key) return say("Nothing to undo here. Untick “undecided only” (above, Queue), go back with [ to the cluster, then press U.");
    const again = last?.previous?.decision ?? null;
    const { decision, groups, kept, note } = last?.previous ?? { decision: "withdrawn", groups: [], kept: [], note: "" };
    const event = { event_id: eventId(), cluster_key: key, reviewer: app.reviewer, decision, groups, kept, note };
    if (!(await app.saver.save(event, "the undo", postCluster))) return;
    this.done.pop();
    app.decided(key, again, true);
    app.queue.goTo(key);
    app.show("cluster");
    await this.open(key);
    say(again ? `Undone: this cluster is “${NAMES[again]}” again.` : "Undone: this cluster is undecided again.");
  }

  key(event, name) {
    const act = {
      " ": () => this.#play(this.focus),
      arrowright: () => this.#focus(this.focus + 1),
      arrowleft: () => this.#focus(this.focus - 1),
      arrowdown: () => this.#focus(this.focus + this.#columns()),
      arrowup: () => this.#focus(this.focus - this.#columns()),
      home: () => this.#focus(0),
      end: () => this.#focus(this.cluster.members.length - 1),
      s: () => this.#split(this.focus),
      k: () => this.#keep(this.focus),
      a: () => this.decide("all_one"),
      d: () => this.decide("not_duplicates"),
      enter: () => this.decide("split"),
      u: () => this.undo(),
      n: () => byId("cluster-note").focus(),
      "[": () => this.step(-1),
      "]": () => this.step(1),
    }[name];
    if (!act || !this.cluster) return false;
    if (!event.repeat || name.startsWith("arrow")) act();
    return true;
  }

  /** Make the next cards; a cluster of hundreds is made as one scrolls. */
  #more() {
    const { members } = this.cluster ?? { members: [] };
    const until = Math.min(this.made + CHUNK, members.length);
    for (; this.made < until; this.made += 1) {
      const card = this.#card(members[this.made], this.made);
      this.list.append(card);
      this.pictures.observe(card);
    }
    this.end.disconnect();
    if (this.made < members.length) this.end.observe(this.list.lastElementChild);
    if (this.cuts) this.#redraw();
  }

  #card(member, place) {
    const name = member.path?.split("/").at(-1) ?? member.clip_id ?? `clip ${place + 1}`;
    const cut = element("button", { type: "button", className: "cut", tabindex: "-1", text: "split here" });
    const play = element("button", { type: "button", className: "play", tabindex: "-1", text: "▶ Play", "aria-label": `Play ${name}` });
    const keep = element("input", { type: "radio", tabindex: "-1", value: place });
    const plot = element("div", { className: "plot" }, element("div", { className: "playhead", hidden: true }));
    const path = element("p", { className: "path" });
    showPath(path, member.path);
    const similarity = Number.isFinite(member.similarity) && place ? `sim. ${member.similarity.toFixed(3)}` : "";
    const card = element(
      "li",
      { tabindex: "-1", "data-place": place, "aria-label": `Clip ${place + 1}: ${name}. ${member.caption ?? ""}` },
      place ? cut : element("span", { className: "cut quiet", text: "group 1" }),
      element("div", { className: "card" },
        plot,
        element("p", { className: "row" }, play, element("label", { className: "tickbox" }, keep, " keep"), element("span", { className: "number", text: similarity, title: "Similarity to the kept clip" })),
        path,
        ...(member.caption ? [element("q", { className: "caption", text: member.caption, title: member.caption })] : []),
        element("p", { className: "quiet", text: [seconds(member.duration_s), member.sample_rate_hz ? kilohertz(member.sample_rate_hz) : null].filter(Boolean).join(" · ") }),
      ),
    );
    if (member.missing) {
      plot.append(element("p", { className: "missing", text: `No sound: ${member.missing}` }));
      play.disabled = true;
    }
    onClick(cut, () => this.#split(place));
    onClick(play, () => this.#play(place));
    keep.addEventListener("change", () => this.#keep(place));
    plot.addEventListener("click", () => this.#play(place));
    card.addEventListener("focusin", () => this.#focused(place));
    return card;
  }

  #picture(card) {
    this.pictures.unobserve(card);
    const member = this.cluster.members[Number(card.dataset.place)];
    if (!member || member.missing) return;
    const image = picture(spectrogramUrl(member, { scale: "mel", start: 0, end: member.duration_s, width: PICTURE_PX }));
    image.alt = `mel spectrogram, ${seconds(member.duration_s)}`;
    card.querySelector(".plot").prepend(image);
  }

  #focus(place) {
    const last = this.cluster.members.length - 1;
    const wanted = Math.min(Math.max(place, 0), last);
    while (this.made <= wanted) this.#more();
    this.list.children[wanted].focus();
  }

  #focused(place) {
    this.list.children[this.focus]?.setAttribute("tabindex", "-1");
    this.focus = place;
    this.list.children[place].setAttribute("tabindex", "0");
  }

  #columns() {
    const cards = [...this.list.children];
    const second = cards.findIndex((card) => card.offsetTop > cards[0].offsetTop + 8);
    return second > 0 ? second : cards.length;
  }

  #split(place) {
    if (!place) return say("A split goes before a clip; the first one has nothing before it.");
    if (!this.cuts.delete(place)) this.cuts.add(place);
    this.#redraw();
    say(this.cuts.has(place) ? `Split before clip ${place + 1}: ${this.#groups().length} groups. Enter saves.` : `Joined again: ${this.#groups().length} group${this.cuts.size ? "s" : ""}.`);
  }

  #keep(place) {
    const group = this.#groups().find((places) => places.includes(place));
    for (const other of group) this.kept.delete(other);
    this.kept.add(place);
    this.#redraw();
    say(`Clip ${place + 1} is kept.`);
  }

  #groups() {
    return runs(this.cluster.members.length, this.cuts);
  }

  #keptOf(group) {
    return group.find((place) => this.kept.has(place)) ?? group[0];
  }

  #redraw() {
    const groups = this.#groups();
    groups.forEach((group, number) => {
      const kept = this.#keptOf(group);
      for (const place of group) {
        const card = this.list.children[place];
        if (!card) break;
        card.dataset.group = number % 2;
        card.classList.toggle("kept", place === kept);
        const radio = card.querySelector("input");
        radio.name = `kept-${number}`;
        radio.checked = place === kept;
        const cut = card.querySelector("button.cut");
        if (!cut) continue;
        cut.textContent = this.cuts.has(place) ? `group ${number + 1} · join` : "split here";
        cut.setAttribute("aria-pressed", String(this.cuts.has(place)));
        card.classList.toggle("first", this.cuts.has(place));
      }
    });
    const { members } = this.cluster;
    const decision = this.app.queue.decided.get(this.cluster.cluster_key);
    byId("cluster-facts").textContent = `${members.length} clips in ${groups.length} group${groups.length > 1 ? "s" : ""}; ${groups.length} kept, ${members.length - groups.length} dropped`;
    byId("split-words").textContent = groups.length > 1 ? `${groups.length} groups: ${groups.map((group) => group.length).slice(0, 8).join(" + ")}${groups.length > 8 ? " …" : ""}` : "split first: S on a clip";
    byId("cluster-hint").textContent = "← → go from clip to clip · Space plays · S splits before the clip · K keeps it · [ ] other clusters · ? shows all keys";
    for (const button of document.querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", String(button.dataset.decision === decision));
    if (!this.list.querySelector("[tabindex='0']")) this.list.children[this.focus]?.setAttribute("tabindex", "0");
  }

  #play(place) {
    const member = this.cluster.members[place];
    if (member.missing) return say(`No sound: ${member.missing}`);
    const same = this.playingPlace === place;
    if (same && !this.sound.paused) return this.sound.pause();
    if (!same) this.sound.src = member.audio;
    else if (this.sound.error) this.sound.load();
    this.playingPlace = place;
    this.sound.play().catch(() => {}); // "error" above says what went wrong; an abort is another clip chosen
  }

  #stop() {
    this.sound.pause();
    this.playingPlace = null;
  }

  #playing() {
    for (const card of this.list.querySelectorAll(".playing")) {
      card.classList.remove("playing");
      card.querySelector(".play").textContent = "▶ Play";
    }
    const card = this.list.children[this.playingPlace];
    if (!card || this.sound.paused) return;
    card.classList.add("playing");
    card.querySelector(".play").textContent = "❚❚ Pause";
  }

  #playhead() {
    const card = this.list.children[this.playingPlace];
    if (!card) return;
    const playhead = card.querySelector(".playhead");
    playhead.hidden = false;
    playhead.style.left = `${(100 * this.sound.currentTime) / this.cluster.members[this.playingPlace].duration_s}%`;
  }
}

/** Consecutive places between the cuts. */
function runs(count, cuts) {
  const groups = [];
  for (let place = 0; place < count; place += 1) {
    if (!place || cuts.has(place)) groups.push([]);
    groups.at(-1).push(place);
  }
  return groups;
}

/** Where the stored groups divide the gallery. */
function cutsOf(cluster, places) {
  const cuts = new Set();
  for (const group of cluster.groups ?? []) {
    const first = Math.min(...group.map((id) => places.get(id)));
    if (first > 0) cuts.add(first);
  }
  return cuts;
}
