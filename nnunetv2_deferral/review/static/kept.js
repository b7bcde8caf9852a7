/** Choices of the reader that are kept across cases and visits, in this browser. */

const PREFIX = "nnunetv2-deferral-review:";

/** @returns the choice, or the fallback if there is none or the browser keeps nothing */
export function kept(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // The choice holds until the page is closed.
  }
}
