// The two spectrograms on one time axis: pictures of the shown stretch, boxes, ticks, playhead, zoom.

import { spectrogramUrl } from "./api.js";
import { firstView, fromAxis, toAxis, within } from "./alignment.js";
import { FREQUENCY_TICKS, element, seconds, timeTicks } from "./words.js";

const SHORTEST_S = 0.1;
const LONGEST_S = 600; // the server draws no longer picture
const SETTLE_MS = 160; // a picture is asked for when the zoom has come to rest
const DRAG_PX = 6;
const WIDEST_PX = 1600;
const ROLES = ["query", "reference"];

/** Pictures on their way or here, by address; the elements themselves are shown, so that nothing is fetched twice. */
const pictures = new Map();

export function picture(url) {
  let image = pictures.get(url);
  if (image && !image.dataset.failed) return image;
  image = new Image();
  image.decoding = "async";
  image.draggable = false;
  image.src = url;
  image.addEventListener("error", () => (image.dataset.failed = "1"));
  pictures.set(url, image);
  if (pictures.size > 60) pictures.delete(pictures.keys().next().value);
  return image;
}

export class View {
  /** `plots`: {query, reference} elements; `axes` likewise; `seek(role, time)` on a click. */
  constructor({ plots, axes, seek, changed }) {
    this.plots = plots;
    this.axes = axes;
    this.seek = seek;
    this.changed = changed;
    this.alignment = null;
    this.scale = "mel";
    this.frequencyTicks = FREQUENCY_TICKS;
    this.parts = {};
    this.failed = new Set(); // roles whose picture could not be fetched
    for (const role of ROLES) {
      const [images, boxes, ticks] = ["images", "boxes", "ticks"].map((className) => element("div", { className, "aria-hidden": "true" }));
      const playhead = element("div", { className: "playhead", "aria-hidden": "true" });
      const marked = element("div", { className: "marked", hidden: true });
      const missing = element("p", { className: "missing", hidden: true });
      const altered = element("p", { className: "altered", hidden: true });
      plots[role].append(images, boxes, ticks, marked, playhead, altered, missing);
      this.parts[role] = { images, boxes, ticks, playhead, marked, missing, altered };
      this.#listen(role);
    }
    new ResizeObserver(() => this.alignment && this.#show({ now: false })).observe(plots.query);
  }

  /** Addresses of the pictures that `show` will ask for first: what to fetch ahead. */
  addresses(alignment) {
    const view = firstView(alignment);
    return ROLES.map((role) => this.#wanted(alignment, role, view)?.url).filter(Boolean);
  }

  /** Show a pair; resolves when both pictures are there, or known to be missing. */
  load(alignment) {
    this.alignment = alignment;
    this.shown = firstView(alignment);
    this.failed.clear();
    for (const role of ROLES) {
      const { images, missing, altered } = this.parts[role];
      altered.hidden = !alignment.pair[role].changed;
      altered.textContent = alignment.pair[role].changed_text || "";
      images.replaceChildren();
      missing.hidden = !alignment.pair[role].missing;
      missing.textContent = alignment.pair[role].missing ? `No picture, no sound: ${alignment.pair[role].missing}` : "";
    }
    return this.#show({ now: true });
  }

  setScale(scale) {
    this.scale = scale;
    if (this.alignment) this.#show({ now: true });
  }

  /** Show `factor` times the stretch, with axis time `anchor` staying where it is. */
  zoom(factor, anchor) {
    const [start, end] = this.shown;
    const full = this.alignment.full;
    const length = Math.min(Math.max((end - start) * factor, SHORTEST_S), full[1] - full[0], LONGEST_S);
    const held = anchor ?? (start + end) / 2;
    const share = (held - start) / (end - start);
    this.#turn([held - share * length, held + (1 - share) * length]);
  }

  reset() {
    this.#turn(firstView(this.alignment));
  }

  move(byShare) {
    const [start, end] = this.shown;
    const by = byShare * (end - start);
    this.#turn([start + by, end + by]);
  }

  get zoomed() {
    const first = firstView(this.alignment);
    return Math.abs(this.shown[0] - first[0]) + Math.abs(this.shown[1] - first[1]) > 1e-6;
  }

  playhead(moment, side) {
    for (const role of ROLES) {
      const { playhead } = this.parts[role];
      const share = this.#share(toAxis(this.alignment, role, moment[role]));
      playhead.hidden = share < 0 || share > 1;
      playhead.style.left = `${100 * share}%`;
      playhead.classList.toggle("listening", role === side || side === "difference");
    }
  }

  #share(time) {
    return (time - this.shown[0]) / (this.shown[1] - this.shown[0]);
  }

  #turn(view) {
    const next = within(view, this.alignment.full);
    if (next[0] === this.shown[0] && next[1] === this.shown[1]) return;
    this.shown = next;
    this.#show({ now: false });
    this.changed();
  }

  /** Which picture covers what `view` shows of a side: its address, start and end on the axis; null if it shows nothing. */
  #wanted(alignment, role, view) {
    const side = alignment.pair[role];
    if (side.missing) return null;
    const start = Math.max(0, fromAxis(alignment, role, view[0]));
    const end = Math.min(side.duration_s, fromAxis(alignment, role, view[1]));
    if (end - start < 0.005) return null;
    const pixels = this.plots[role].clientWidth * Math.min(devicePixelRatio || 1, 2);
    const share = (end - start) / (view[1] - view[0]);
    const width = Math.min(WIDEST_PX, Math.max(80, 40 * Math.ceil((pixels * share) / 40))); // steps: same address, same picture
    const url = spectrogramUrl(side, { scale: this.scale, start, end, width });
    return { url, start: toAxis(alignment, role, start), end: toAxis(alignment, role, end) };
  }

  #show({ now }) {
    for (const role of ROLES) {
      this.#draw(role);
      this.#place(role);
    }
    clearTimeout(this.timer);
    if (now) return Promise.all(ROLES.map((role) => this.#fetch(role)));
    this.timer = setTimeout(() => ROLES.forEach((role) => this.#fetch(role)), SETTLE_MS);
    return Promise.resolve();
  }

  async #fetch(role) {
    const { alignment } = this;
    const { images, missing } = this.parts[role];
    const wanted = this.#wanted(alignment, role, this.shown);
    const plot = this.plots[role];
    plot.dataset.wanted = wanted?.url ?? "";
    if (!wanted) return;
    const image = picture(wanted.url);
    if (!image.complete) {
      plot.classList.add("waiting");
      await new Promise((resolve) => {
        image.addEventListener("load", resolve, { once: true });
        image.addEventListener("error", resolve, { once: true });
      });
    }
    if (plot.dataset.wanted !== wanted.url || alignment !== this.alignment) return; // a later wish came in between
    plot.classList.remove("waiting");
    if (image.naturalWidth) {
      image.alt = "";
      image.span = [wanted.start, wanted.end];
      images.replaceChildren(image);
      missing.hidden = true;
      this.failed.delete(role);
      this.#place(role);
    } else {
      this.failed.add(role);
      missing.hidden = false;
      missing.textContent = "The picture could not be fetched. Zoom, or press M twice, to ask again.";
    }
  }

  /** Pictures hold the stretch they were made for; in another view they are stretched until the right one is here. */
  #place(role) {
    for (const image of this.parts[role].images.children) {
      const [left, right] = image.span.map((time) => this.#share(time));
      image.style.left = `${100 * left}%`;
      image.style.width = `${100 * (right - left)}%`;
    }
  }

  #draw(role) {
    const { alignment, shown } = this;
    const { boxes, ticks } = this.parts[role];
    const side = alignment.pair[role];
    boxes.replaceChildren(
      ...alignment.spans.map((span, place) => {
        const [left, right] = [span[`${role}_start_s`], span[`${role}_end_s`]].map((time) => this.#share(toAxis(alignment, role, time)));
        const box = element("div", { className: span === alignment.strongest ? "span strongest" : "span" });
        if (alignment.spans.length > 1) box.append(element("span", { className: "label", text: place + 1 }));
        box.style.left = `${100 * left}%`;
        box.style.width = `${100 * (right - left)}%`;
        return box;
      }),
    );
    ticks.replaceChildren(
      ...(this.frequencyTicks[this.scale] ?? []).map(([label, height]) => {
        const tick = element("span", { className: "tick frequency", text: label });
        tick.style.bottom = `${100 * height}%`;
        return tick;
      }),
    );
    const [from, to] = shown.map((time) => fromAxis(alignment, role, time));
    const room = Math.max(3, Math.floor(this.plots[role].clientWidth / 90));
    const inClip = timeTicks(from, to, room).filter(([, share]) => {
      const time = from + share * (to - from);
      return time >= -1e-6 && time <= side.duration_s + 1e-6 && share <= 0.97;
    });
    this.axes[role].replaceChildren(
      ...inClip.map(([label, share]) => {
        const tick = element("span", { className: "tick", text: label });
        tick.style.left = `${100 * share}%`;
        return tick;
      }),
    );
    const plot = this.plots[role];
    const [first, last] = [Math.max(0, from), Math.min(side.duration_s, to)];
    plot.setAttribute("aria-label", `${this.scale} spectrogram of the ${role}, ${seconds(first)} to ${seconds(Math.max(first, last))}`);
  }

  #listen(role) {
    const plot = this.plots[role];
    const { marked } = this.parts[role];
    let drag = null;
    const timeAt = (x) => {
      const box = plot.getBoundingClientRect();
      return this.shown[0] + ((x - box.left - plot.clientLeft) / plot.clientWidth) * (this.shown[1] - this.shown[0]);
    };
    plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.alignment) return;
      plot.setPointerCapture(event.pointerId);
      drag = { x: event.clientX, time: timeAt(event.clientX), shown: this.shown, moved: false, pans: event.shiftKey || event.pointerType === "touch" };
    });
    plot.addEventListener("pointermove", (event) => {
      if (!drag) return;
      drag.moved ||= Math.abs(event.clientX - drag.x) > DRAG_PX;
      if (!drag.moved) return;
      if (drag.pans) {
        const by = ((drag.x - event.clientX) / plot.clientWidth) * (drag.shown[1] - drag.shown[0]);
        this.#turn(drag.shown.map((time) => time + by));
      } else {
        const [left, right] = [drag.time, timeAt(event.clientX)].map((time) => this.#share(time)).sort((a, b) => a - b);
        marked.hidden = false;
        marked.style.left = `${100 * left}%`;
        marked.style.width = `${100 * (right - left)}%`;
      }
    });
    plot.addEventListener("pointerup", (event) => {
      if (!drag) return;
      const { moved, pans, time } = drag;
      const now = timeAt(event.clientX);
      drag = null;
      marked.hidden = true;
      if (!moved) this.seek(role, fromAxis(this.alignment, role, now));
      else if (!pans) this.#turn(widened([Math.min(time, now), Math.max(time, now)]));
    });
    plot.addEventListener("pointercancel", () => {
      drag = null;
      marked.hidden = true;
    });
    plot.addEventListener(
      "wheel",
      (event) => {
        if (!this.alignment || event.ctrlKey) return;
        event.preventDefault();
        if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.move((event.deltaX || event.deltaY) / 800);
        else this.zoom(2 ** (event.deltaY / 240), timeAt(event.clientX));
      },
      { passive: false },
    );
  }
}

const widened = ([start, end]) => (end - start >= SHORTEST_S ? [start, end] : [(start + end - SHORTEST_S) / 2, (start + end + SHORTEST_S) / 2]);
