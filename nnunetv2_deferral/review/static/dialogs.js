/** Confirmations, short messages, and the list of keys. */

import { h } from "./dom.js";

/** Ask for confirmation of an irreversible action. @returns {Promise<boolean>} */
export const ask = (title, text, yes) => confirmed(title, text, yes, null);

/** Ask for a line of text, which may be empty. @returns {Promise<string|null>} null if it was cancelled */
export async function askText(title, text, yes, maxLength) {
  const field = h("input.wide", { type: "text", maxLength });
  return (await confirmed(title, text, yes, field)) ? field.value.trim() : null;
}

function confirmed(title, text, yes, field) {
  return new Promise((resolve) => {
    const close = (answer) => {
      dialog.close();
      dialog.remove();
      resolve(answer);
    };
    const confirm = h("button.primary", { on: { click: () => close(true) } }, yes);
    const dialog = h(
      "dialog",
      { on: { cancel: () => close(false) } },
      h("h2", {}, title),
      h("p", {}, text),
      field,
      h("div.row.end", {}, h("button", { on: { click: () => close(false) } }, "Cancel"), confirm),
    );
    field?.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && close(true));
    document.body.append(dialog);
    dialog.showModal();
    (field ?? confirm).focus();
  });
}

let shown = null;

/** Show a message for a while. */
export function toast(text, kind = "info", duration = 3500) {
  shown?.remove();
  const element = h(`div.toast.${kind}`, { role: "status" }, text);
  shown = element;
  document.body.append(element);
  setTimeout(() => element.remove(), duration);
}

const KEYS = [
  [
    "Regions",
    [
      ["Enter", "Accept the region as painted, go to the first open one"],
      ["M", "The model is right here (if its mask is shown)"],
      ["T", "I cannot tell: no answer"],
      ["Q and W", "Adjudicator: the first, the second reading is right"],
      ["L", "Confidence: high, medium, low"],
      ["N or Space", "Next open region"],
      [", and .", "Previous and next region"],
      ["X", "Flag a place outside of the regions, then click on it"],
      ["Ctrl+Enter", "Submit the case"],
    ],
  ],
  [
    "Drawing",
    [
      ["B  G  E  P  F", "Brush, smart brush, eraser, polygon, fill"],
      ["Y", "Brush through slices, as a ball"],
      ["Z", "Fill the region between the slices that you have drawn in"],
      ["D", "Ruler"],
      ["0 … 9", "Label"],
      ["[ and ]", "Brush size"],
      ["Enter, Esc", "Close or discard the polygon"],
      ["Ctrl+Z, Ctrl+Shift+Z", "Undo, redo"],
    ],
  ],
  [
    "View",
    [
      ["Wheel, ↑ ↓, Page ↑ ↓", "Slices"],
      ["Ctrl+wheel, + −", "Zoom"],
      ["Shift+drag, middle drag", "Pan"],
      ["Shift+1 … 5", "Windows in the order listed"],
      ["Right drag", "Window (left–right) and level (up–down)"],
      ["J", "Move all planes to the pointer"],
      ["A  C  S", "Axial, coronal, sagittal"],
      ["R", "Reset view and window"],
      ["V", "Outline of your mask only, or filled"],
      ["H  O  K", "Show or hide your mask, the model's outline, region borders"],
      ["U and I", "Adjudicator: show or hide the first, the second reading"],
    ],
  ],
];

/** Show the list of keys. */
export function showKeys() {
  if (document.querySelector("dialog.keys")) return;
  const close = () => {
    dialog.close();
    dialog.remove();
  };
  const dialog = h(
    "dialog.keys",
    { on: { cancel: close, click: (event) => event.target === dialog && close() } },
    h("h2", {}, "Keys and mouse"),
    h(
      "div.columns",
      {},
      ...KEYS.map(([title, keys]) =>
        h(
          "section",
          {},
          h("h3", {}, title),
          h("dl", {}, ...keys.flatMap(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
        ),
      ),
    ),
    h("div.row.end", {}, h("button", { on: { click: close } }, "Close")),
  );
  document.body.append(dialog);
  dialog.showModal();
}
