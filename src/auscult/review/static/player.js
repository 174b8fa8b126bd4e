// Query, reference and their difference as three <audio> elements of which one plays, on one aligned clock.

import { counterpart, inSpan, spanAt } from "./alignment.js";

const EARLY_S = 0.02; // a frame of the screen: the loop turns before the span's end, not after it
const END_S = 0.03; // this near its end a clip counts as played
const LOOP_S = 0.1; // a loop of less than this is none

export class Player {
  /** `tell(kind, detail)` hears "state" (something to redraw), "time" (the playhead moved) and "error". */
  constructor(sounds, tell) {
    this.sounds = sounds; // {query, reference, difference}: HTMLAudioElement
    this.tell = tell;
    this.alignment = null;
    this.side = "query";
    this.loop = null; // the span that is looped
    this.matching = true;
    for (const [role, sound] of Object.entries(sounds)) {
      sound.addEventListener("ended", () => role === this.side && this.#ended());
      sound.addEventListener("timeupdate", () => role === this.side && this.#follow()); // where no frames are drawn
      for (const kind of ["play", "pause", "seeked"]) sound.addEventListener(kind, () => this.#redraw());
      sound.addEventListener("error", () => {
        if (sound.getAttribute("src")) tell("error", role);
      });
    }
  }

  load(alignment) {
    this.stop();
    const { pair } = alignment;
    this.alignment = alignment;
    this.loop = null;
    this.side = pair.query.missing && !pair.reference.missing ? "reference" : "query";
    for (const role of ["query", "reference"]) this.#source(role, pair[role].missing ? null : pair[role].audio);
    this.#source("difference", null); // fetched when asked for: it has to be computed
    this.#levels();
    const start = this.#startOf(this.side);
    if (!pair[this.side].missing) this.#sound().currentTime = start;
    this.#redraw();
  }

  stop() {
    for (const sound of Object.values(this.sounds)) sound.pause();
  }

  get playing() {
    return !this.#sound().paused;
  }

  /** Where the playhead is: seconds of the query and of the reference. */
  get moment() {
    if (!this.alignment) return { query: 0, reference: 0 };
    const time = this.#sound().currentTime;
    if (this.side === "reference") return { query: counterpart(this.alignment, "reference", time, this.loop), reference: time };
    const query = this.side === "difference" ? time + this.#differenceStart() : time;
    return { query, reference: counterpart(this.alignment, "query", query, this.loop) };
  }

  /** Play a side from the moment the playhead is at; from its start when that is over. */
  play(side = this.side) {
    if (!this.#has(side)) return;
    this.#turnTo(side);
    const sound = this.#sound();
    this.#leaveLoop();
    if (this.loop) {
      const [start, end] = this.#loopEnds();
      if (sound.currentTime < start - EARLY_S || sound.currentTime >= end - EARLY_S) sound.currentTime = start;
    } else if (sound.duration && sound.currentTime >= sound.duration - END_S) {
      sound.currentTime = side === "difference" ? 0 : this.#startOf(side);
    }
    this.#start(sound);
  }

  pause() {
    this.#sound().pause();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  /** The other side at the same aligned moment; goes on playing if it played. */
  swap() {
    const side = this.side === "query" ? "reference" : "query";
    if (!this.#has(side)) return;
    const playing = this.playing;
    this.#turnTo(side);
    if (playing) this.#start(this.#sound());
    this.#redraw();
  }

  /** Put the playhead at `time` seconds of the query or the reference, and listen to that side. */
  seek(role, time) {
    if (!this.#has(role)) return;
    const playing = this.playing;
    this.stop();
    this.side = role;
    if (this.loop && !inSpan(this.loop, role, time)) this.loop = spanAt(this.alignment, role, time);
    this.#sound().currentTime = this.#inside(role, time);
    if (playing) this.#start(this.#sound());
    this.#redraw();
  }

  toggleLoop() {
    if (this.loop) {
      this.loop = null;
    } else {
      const role = this.side === "reference" ? "reference" : "query";
      this.loop = spanAt(this.alignment, role, this.moment[role]) ?? this.alignment.strongest;
      if (this.loop) this.play();
    }
    this.#redraw();
  }

  setMatching(on) {
    this.matching = on;
    this.#levels();
    this.#redraw();
  }

  /** To be called on every frame drawn. */
  frame() {
    if (this.alignment && this.playing) this.#follow();
  }

  #has(role) {
    if (!this.alignment) return false;
    const { pair } = this.alignment;
    if (role === "difference") return Number.isFinite(pair.difference_db); // known once it was computed
    return !pair[role].missing;
  }

  #sound() {
    return this.sounds[this.side];
  }

  #source(role, url) {
    const sound = this.sounds[role];
    if (url) {
      sound.src = url;
    } else if (sound.hasAttribute("src")) {
      sound.removeAttribute("src");
      sound.load();
    }
  }

  #turnTo(side) {
    if (side === this.side) return;
    const { query, reference } = this.moment;
    this.stop();
    this.side = side;
    if (side === "difference") {
      if (!this.#sound().hasAttribute("src")) this.#source("difference", `/media/${this.alignment.pair.pair_id}/difference.wav`);
      this.#sound().currentTime = Math.max(0, query - this.#differenceStart());
    } else {
      this.#sound().currentTime = this.#inside(side, side === "query" ? query : reference);
    }
  }

  /** `time` if the clip has it; else where it may start: a moment outside the other clip has no counterpart. */
  #inside(role, time) {
    const end = this.alignment.pair[role].duration_s;
    return time >= 0 && time < end - END_S ? time : this.#startOf(role);
  }

  /** Short clips start at their start, long ones a second before the strongest span. */
  #startOf(role) {
    const { pair, strongest } = this.alignment;
    if (!strongest || pair[role].duration_s <= 30) return 0;
    return Math.max(0, strongest[`${role}_start_s`] - 1);
  }

  #differenceStart() {
    const { pair, strongest } = this.alignment;
    return pair.difference?.start_s ?? strongest?.query_start_s ?? 0;
  }

  #loopEnds() {
    if (this.side === "difference") {
      const start = Math.max(0, this.loop.query_start_s - this.#differenceStart());
      const end = this.loop.query_end_s - this.#differenceStart();
      return [start, Math.min(end, this.#sound().duration || end)];
    }
    return [this.loop[`${this.side}_start_s`], this.loop[`${this.side}_end_s`]];
  }

  /** The difference may be of another stretch than the loop; then it is heard from its start. */
  #leaveLoop() {
    if (!this.loop || this.side !== "difference") return;
    const [start, end] = this.#loopEnds();
    if (end - start >= LOOP_S) return;
    this.loop = null;
    this.#sound().currentTime = 0;
    this.tell("state");
  }

  #start(sound) {
    if (sound.error) sound.load(); // the server was away; ask anew
    sound.play().catch((error) => {
      if (error.name !== "AbortError") this.tell("error", this.side); // aborted: another side was chosen meanwhile
    });
  }

  #ended() {
    if (this.loop) {
      this.#leaveLoop();
      this.#sound().currentTime = this.loop ? this.#loopEnds()[0] : 0;
      this.#start(this.#sound());
    }
    this.#redraw();
  }

  #follow() {
    if (!this.alignment) return;
    const sound = this.#sound();
    this.#leaveLoop(); // how long a difference is, is known once it is loaded
    if (this.loop && !sound.paused && !sound.seeking) {
      const [start, end] = this.#loopEnds();
      if (sound.currentTime >= end - EARLY_S) sound.currentTime = start;
    }
    this.tell("time");
  }

  /** Turn the louder side down to the quieter one; nothing is turned up, so nothing clips. */
  #levels() {
    const level = this.alignment?.pair.level_db;
    const known = this.matching && Number.isFinite(level?.query) && Number.isFinite(level?.reference);
    const gain = (own, other) => (known ? Math.min(1, 10 ** ((other - own) / 20)) : 1);
    this.sounds.query.volume = gain(level?.query, level?.reference);
    this.sounds.reference.volume = gain(level?.reference, level?.query);
    this.sounds.difference.volume = this.sounds.query.volume; // so that one hears how much is left of the query
  }

  #redraw() {
    this.tell("state");
    this.tell("time");
  }
}
