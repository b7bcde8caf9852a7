/** Places that experts flagged outside of their regions: on the slices, and as a list. */

import { columnRow } from "./planes.js";
import { h } from "./dom.js";

const COLOUR = "#ff5cf4";

/**
 * Mark the flags on the slice of a view.
 *
 * @param {import("./slice_view.js").SliceView} view
 * @param {CanvasRenderingContext2D} context
 * @param {{left: number, top: number, stepU: number, stepV: number}} place
 * @param {{at: number[]}[]} flags
 */
export function drawFlags({ plane, slice }, context, { left, top, stepU, stepV }, flags) {
  context.lineWidth = 2;
  context.strokeStyle = COLOUR;
  for (const { at } of flags) {
    if (at[plane.axis] !== slice) continue;
    const [u, v] = columnRow(plane, at);
    const [x, y] = [left + (u + 0.5) * stepU, top + (v + 0.5) * stepV];
    context.beginPath();
    context.arc(x, y, 9, 0, 2 * Math.PI);
    context.moveTo(x, y - 9);
    context.lineTo(x, y - 22);
    context.stroke();
  }
}

/** A place in words, counted from 1. */
export const placeText = ([z, y, x]) => `slice ${z + 1}, row ${y + 1}, column ${x + 1}`;

/**
 * The flags as a list.
 *
 * @param {{at: number[], comment: string, expert?: string}[]} flags
 * @param {(flag: object) => void} onVisit
 * @param {((flag: object) => void)|null} [onRemove]  null if they cannot be removed
 */
export function flagList(flags, onVisit, onRemove = null) {
  return h(
    "div.flags",
    {},
    ...flags.map((flag) =>
      h(
        "div.region",
        {},
        h(
          "button.region-name",
          { title: `Go to ${placeText(flag.at)}`, on: { click: () => onVisit(flag) } },
          h("span.flag", {}, "⚑"),
          h("span.comment", {}, [flag.expert, flag.comment || placeText(flag.at)].filter(Boolean).join(": ")),
        ),
        onRemove
          ? h("button.quiet", { title: "Remove this flag", on: { click: () => onRemove(flag) } }, "Remove")
          : null,
      ),
    ),
  );
}
