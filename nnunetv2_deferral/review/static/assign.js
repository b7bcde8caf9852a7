/** Step 1: assignment of voxels to experts. */

import { expected, h, nameCell, percent, plural, priority, swatch } from "./dom.js";
import { css, expertColour, labelColour } from "./colours.js";
import { flagList } from "./flags.js";
import { extentOf } from "./regions.js";
import { Viewer } from "./viewer.js";

/**
 * @param {object} options
 * @param {object} options.me       the person signed in
 * @param {object} options.entry    the entry in the list of cases
 * @param {object} options.details  the details of the case
 * @param {import("./scene.js").Scene} options.scene
 * @param {Uint8Array} options.model
 * @param {Uint8Array|Uint16Array} options.route  numbers of experts, or for an expert the numbers of their regions
 */
export function createAssignment({ me, entry, details, scene, model, route }) {
  const isExpert = me.role === "expert";
  const flags = details.flags ?? [];
  const [{ gain }] = entry.experts;
  const colourOf = (value) => expertColour(isExpert ? details.number : value);
  const fillOf = cached((value) => [...colourOf(value), 70]);
  const outlineOf = cached((value) => ({ colour: css(colourOf(value)), width: 1.5, halo: true }));
  const routing = { data: route, visible: true, fill: fillOf, outline: outlineOf };
  const mask = {
    data: model,
    visible: true,
    outline: cached((label) => ({ colour: css(labelColour(label)), width: 1.5, halo: true })),
  };
  const viewer = new Viewer(scene, [[routing, mask]], { flags, solid: model, labels: details.labels });
  const toggle = (text, layer) =>
    h(
      "label.check",
      {},
      h("input", {
        type: "checkbox",
        checked: true,
        on: {
          change: (event) => {
            layer.visible = event.target.checked;
            scene.redraw();
          },
        },
      }),
      text,
    );
  const rows = entry.experts
    .filter(({ voxels }) => voxels > 0 || !isExpert)
    .map((status) =>
      h(
        "tr",
        { title: plural(status.voxels, "voxel") },
        nameCell(status.expert, css(expertColour(details.experts.indexOf(status.expert) + 1))),
        h("td.number", {}, percent(status.share)),
        h("td.number", {}, String(status.regions)),
      ),
    );
  const panel = h(
    "aside.panel",
    {},
    h("h2", {}, isExpert ? "Your part of this case" : "Experts"),
    h(
      "p.figure",
      {},
      percent(entry.rate),
      h("span", {}, isExpert ? " of voxels are yours" : " of voxels deferred"),
    ),
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", {}, "Expert"),
          h("th.number", {}, "Share"),
          h("th.number", {}, "Regions"),
        ),
      ),
      h("tbody", {}, ...rows),
    ),
    entry.left_out
      ? h("p.note", {}, `${plural(entry.left_out, "voxel")} not on the worklist: the model's label is kept.`)
      : null,
    entry.other_mask
      ? h(
          "p.note",
          {},
          "Caution: this mask is not the one predicted with the maps. Routing and gain refer to a different mask.",
        )
      : null,
    isExpert
      ? h("p.note", {}, `Priority: ${priority(gain)}. Your answers are ${expected(gain)}.`)
      : null,
    flags.length ? h("h2", {}, "Flagged by experts") : null,
    flags.length ? flagList(flags, ({ at }) => scene.moveTo(at)) : null,
    h("h2", {}, "Shown"),
    toggle(isExpert ? "Your regions" : "Routing", routing),
    details.blind ? null : toggle("The model's mask", mask),
    h(
      "div.legend",
      {},
      ...details.labels
        .filter(({ label }) => label > 0)
        .map(({ label, name }) => h("span", {}, swatch(css(labelColour(label))), name)),
    ),
    h("h2", {}, "Image"),
    h(
      "dl",
      {},
      h("dt", {}, "Size"),
      h(
        "dd",
        {},
        scene.isFlat
          ? `${details.shape[2]} × ${details.shape[1]}`
          : `${details.shape[2]} × ${details.shape[1]} × ${details.shape[0]}`,
      ),
      details.named ? h("dt", {}, "Voxel") : null,
      details.named
        ? h(
            "dd",
            {},
            `${[...details.spacing]
              .reverse()
              .map((mm) => +mm.toFixed(3))
              .join(" × ")} mm`,
          )
        : null,
      details.oblique >= 1 ? h("dt", {}, "Oblique") : null,
      details.oblique >= 1 ? h("dd", {}, `by ${details.oblique.toFixed(0)}°, shown along its own axes`) : null,
    ),
    isExpert && !details.submitted
      ? h(
          "a.button.primary",
          { href: `#/${encodeURIComponent(details.case)}/2` },
          `Answer ${plural(details.regions.length, "region")}`,
        )
      : null,
  );
  const start = () => scene.moveTo(extentOf(route, details.shape)?.centre ?? scene.position);
  return { viewer, panel, start, onKey: (event) => viewer.onKey(event), leave: async () => true };
}

/** Cache a function of the value of a voxel. */
export function cached(of) {
  const known = new Map();
  return (value) => {
    if (!known.has(value)) known.set(value, of(value));
    return known.get(value);
  };
}
