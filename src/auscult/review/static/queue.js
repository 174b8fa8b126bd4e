// The pairs, or clusters, to go through: where one is, what is decided, how fast it goes.

import { minutes } from "./words.js";

const BREAK_S = 120; // a pause longer than this is no time spent on a pair
const RECENT = 20;

export class Queue {
  /** `ids` in order; `decided`: Map of id to verdict; `times`: Map of id to when that was, where known. With `undecided`, only what is undecided now is gone through. */
  constructor(ids, decided, undecided, times = new Map()) {
    this.all = ids;
    this.times = times;
    this.decided = decided;
    this.list = undecided ? ids.filter((id) => !decided.has(id)) : ids;
    this.undecided = undecided;
    const first = this.list.findIndex((id) => !decided.has(id));
    this.place = first < 0 && this.list.length ? 0 : first; // -1: nothing to go through
    this.count = ids.reduce((sum, id) => sum + decided.has(id), 0);
    this.members = new Set(ids);
  }

  get current() {
    return this.list[this.place] ?? null;
  }

  /** What the reviewer decided last of this queue, before the page was opened; null if unknown. */
  get latest() {
    let latest = null;
    for (const [id, time] of this.times) {
      if (this.decided.has(id) && (latest === null || time > this.times.get(latest))) latest = id;
    }
    return latest;
  }

  get finished() {
    return this.count === this.all.length;
  }

  /** The next `n` ids after the current one that would be shown. */
  ahead(n) {
    const found = [];
    for (let place = this.place + 1; place < this.list.length && found.length < n; place += 1) {
      if (!this.decided.has(this.list[place])) found.push(this.list[place]);
    }
    return found;
  }

  step(by) {
    const place = this.place + by;
    if (place < 0 || place >= this.list.length) return false;
    this.place = place;
    return true;
  }

  /** To the next undecided one, from the start again at the end; false when none is left. */
  advance() {
    const open = (place) => !this.decided.has(this.list[place]);
    for (let by = 1; by <= this.list.length; by += 1) {
      const place = (this.place + by) % this.list.length;
      if (open(place)) {
        this.place = place;
        return true;
      }
    }
    return false;
  }

  goTo(id) {
    const place = this.list.indexOf(id);
    if (place < 0) return false;
    this.place = place;
    return true;
  }

  /** Note a verdict; null takes it back. */
  mark(id, verdict) {
    if (this.members.has(id)) this.count += (verdict !== null) - this.decided.has(id);
    this.times.delete(id);
    if (verdict === null) this.decided.delete(id);
    else this.decided.set(id, verdict);
  }

  counts() {
    const counts = new Map();
    for (const id of this.all) {
      const verdict = this.decided.get(id);
      if (verdict) counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
    }
    return counts;
  }
}

/** How fast decisions come, of the last few, breaks left out. */
export class Pace {
  constructor() {
    this.times = [performance.now()];
  }

  note() {
    this.times.push(performance.now());
    this.times = this.times.slice(-RECENT - 1);
  }

  /** "4.2 per minute · 38 min left", or nothing before three decisions. */
  words(left) {
    const steps = this.times.slice(1).map((time, place) => (time - this.times[place]) / 1000).filter((step) => step <= BREAK_S);
    if (steps.length < 3) return "";
    const perMinute = (60 * steps.length) / steps.reduce((sum, step) => sum + step, 0);
    const rate = perMinute >= 10 ? Math.round(perMinute) : perMinute.toFixed(1);
    return left ? `${rate} per minute · ${left < perMinute ? "" : "about "}${minutes(left / perMinute)} left` : `${rate} per minute`;
  }
}
