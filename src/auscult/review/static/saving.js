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

const REFUSED = [400, 409, 413, 422];

export class Saver {
  constructor() {
    this.busy = false;
    this.retry = null; // set while something could not be saved
    this.refused = false; // the banner says why the server did not take it
  }

  /** Take away what was said of the last refusal. */
  dismiss() {
    if (this.refused) hideBanner();
    this.refused = false;
  }

  /** Resolves with the server's answer, or null if the reviewer gave up or the server refused; the same event is sent however often. */
  async save(event, what, post) {
    this.dismiss();
    this.busy = true;
    window.addEventListener("beforeunload", warn);
    try {
      for (;;) {
        try {
          return await post(event);
        } catch (error) {
          if (REFUSED.includes(error.status)) return this.#refuse(what, error);
          if (!(await this.#ask(what, error))) return null;
        }
      }
    } finally {
      this.busy = false;
      window.removeEventListener("beforeunload", warn);
    }
  }

  /** Sent again as it is, it would be refused again: what is shown stays, to be changed and decided anew. */
  #refuse(what, error) {
    say("");
    this.refused = true;
    banner(`Not saved: ${what}. ${error.message}`, [["Close", () => this.dismiss()]]);
    return null;
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
