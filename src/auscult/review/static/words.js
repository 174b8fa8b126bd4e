// Elements, numbers and words, as the screens show them.

/** The element with the given class, content and children; text is set as text, so that no caption becomes markup. */
export function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Buttons hand the focus back after a click of the mouse, so that keys such as Tab and Space keep their meaning. */
export function onClick(button, act) {
  button.addEventListener("click", (event) => {
    if (event.detail > 0) button.blur();
    act(event);
  });
}

/** A path of which the folders are cut off first, where there is no room: names tell more than folders. */
export function showPath(shown, path) {
  const cut = (path ?? "").lastIndexOf("/") + 1;
  shown.replaceChildren(element("span", { className: "folders", text: (path ?? "").slice(0, cut) }), element("span", { text: (path ?? "").slice(cut) }));
  shown.title = path ?? "";
  shown.hidden = !path;
}

/** "4.25 s"; from a minute on "15:00", with `fine` digits after it. */
export function seconds(value, digits = 2, fine = 0) {
  if (value < 60) return `${value.toFixed(digits)} s`;
  const parts = 10 ** fine; // counted in whole ones, so that 59.996 does not become ":60"
  const count = Math.round(value * parts);
  const clock = [Math.floor(count / parts / 3600), Math.floor(count / parts / 60) % 60, Math.floor(count / parts) % 60];
  if (!clock[0]) clock.shift();
  const shown = clock.map((part, place) => (place ? String(part).padStart(2, "0") : part)).join(":");
  return fine ? `${shown}.${String(count % parts).padStart(fine, "0")}` : shown;
}

export const kilohertz = (hertz) => `${+(hertz / 1000).toFixed(3)} kHz`;
export const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
export const minutes = (value) => (value < 1 ? "under a minute" : value < 90 ? `${Math.round(value)} min` : `${(value / 60).toFixed(1)} h`);

export function probability(p) {
  if (p >= 0.001) return p.toFixed(3);
  return p > 0 ? p.toExponential(0).replace("e-", "e−") : "0";
}

/** What a residual of so many dB, relative to the query, says about a pair. */
export function residualInWords(decibel) {
  const share = 100 * 10 ** (decibel / 10);
  const left = `${share < 1 ? share.toPrecision(1) : Math.round(share)} % of the query's energy is left after subtracting the reference`;
  if (decibel <= -20) return `${left}: the same waveform.`;
  if (decibel <= -6) return `${left}: the same waveform with something added, taken away or filtered.`;
  return `${left}: the waveforms differ. A copy in another pitch, tempo or phase does so, too; judge by ear.`;
}

const STEPS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600];

/** Round times within a stretch: [label, share of the width]; at most `most` of them. */
export function timeTicks(start, end, most = 8) {
  const step = STEPS_S.find((candidate) => (end - start) / candidate <= most) ?? 7200;
  const fine = step >= 1 ? 0 : step >= 0.1 ? 1 : step >= 0.01 ? 2 : 3;
  const ticks = [];
  for (let place = Math.ceil(start / step - 1e-9); place * step < end; place += 1) {
    const time = place * step;
    const label = Math.abs(time) >= 60 ? `${time < 0 ? "−" : ""}${seconds(Math.abs(time), 2, fine)}` : `${+time.toFixed(3)} s`;
    ticks.push([label, (time - start) / (end - start)]);
  }
  return ticks;
}

/** Kilohertz ticks where the server names none: the pictures are 96 mel bands, or linear, up to 8 kHz. */
export const FREQUENCY_TICKS = {
  mel: [["250 Hz", 0.12], ["1 kHz", 0.35], ["2 kHz", 0.53], ["4 kHz", 0.75]],
  linear: [["1 kHz", 0.125], ["2 kHz", 0.25], ["4 kHz", 0.5], ["6 kHz", 0.75]],
};
