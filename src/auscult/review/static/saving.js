// Sending what was decided, and saying so when it did not arrive. What is not acknowledged is kept and sent again.

import { byId, element, onClick } from "./words.js";

/** A message across the page with buttons: [[label, act], ...]. */
export function banner(text, buttons) {
  byId("banner-text").textContent = text;
  byId("banner-buttons").replaceChildren(
    ...buttons.map(([label, act]) => {
      const button = element("button", { type: "button", text: label });
      onClick(button, act);
      return button;
    }),
  );
  byId("banner").hidden = false;
}

export function hideBanner() {
  byId("banner").hidden = true;
}

/** For screen readers, and as a short line on the screen. */
export function say(text) {
  byId("said").textContent = text;
}

export class Saver {
  constructor() {
    this.busy = false;
    this.retry = null; // set while something could not be saved
  }

  /** Resolves with the server's answer, or null if the reviewer gave up; the same event is sent however often. */
  async save(event, what, post) {
    this.busy = true;
    window.addEventListener("beforeunload", warn);
    try {
      for (;;) {
        try {
          return await post(event);
        } catch (error) {
          if (!(await this.#ask(what, error))) return null;
        }
      }
    } finally {
      this.busy = false;
      window.removeEventListener("beforeunload", warn);
    }
  }

  #ask(what, error) {
    say("");
    return new Promise((resolve) => {
      const answer = (again) => {
        this.retry = null;
        hideBanner();
        resolve(again);
      };
      this.retry = () => answer(true);
      banner(`Not saved: ${what}. ${error.message} It is kept here until you retry.`, [
        ["Retry (R)", this.retry],
        ["Discard", () => answer(false)],
      ]);
    });
  }
}

function warn(event) {
  event.preventDefault();
}
