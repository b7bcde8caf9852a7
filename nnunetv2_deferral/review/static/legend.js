/** What lines and colours mean, and the card that a reader sees on the first visit. */

import { h } from "./dom.js";
import { keep, kept } from "./kept.js";

/** A short line as it is drawn in the image: an outline from `Layer.outline`. */
export function lineSample({ colour, width, dash }) {
  const line = h("span.line");
  const style = dash ? (dash[0] > 4 ? "dashed" : "dotted") : "solid";
  line.style.borderTop = `${Math.max(2, Math.round(width))}px ${style} ${colour}`;
  return line;
}

/** A list of line samples and what they mean. */
export const legend = (entries) =>
  h("div.legend", {}, ...entries.map(([outline, text]) => h("span", {}, lineSample(outline), text)));

/** Show a card over an element until the reader has closed it once. @returns {(() => void)|null} closes the card */
export function showCard(over, name, title, lines) {
  if (kept(name, false)) return null;
  const close = () => {
    keep(name, true);
    card.remove();
  };
  const card = h(
    "section.card",
    {},
    h("h3", {}, title),
    h("ol", {}, ...lines.map((line) => h("li", {}, line))),
    h("div.row.end", {}, h("button", { on: { click: close } }, "Got it", h("kbd", {}, "Esc"))),
  );
  over.append(card);
  return close;
}
