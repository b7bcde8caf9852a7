/** Step 3: the fused mask beside the model's, with the changes. */

import * as api from "./api.js";
import { cached } from "./assign.js";
import { REFERENCE, css, expertColour, labelColour } from "./colours.js";
import { askText, toast } from "./dialogs.js";
import { count, h, minutes, nameCell, plural, swatch } from "./dom.js";
import { extentOf } from "./regions.js";
import { Viewer } from "./viewer.js";

const CHANGED = [255, 214, 10];
const OUTCOMES = { agreed: "Agreed", adjudicated: "Adjudicated", single: "One reading", open: "Open" };

/**
 * @param {object} options
 * @param {object} options.details
 * @param {import("./scene.js").Scene} options.scene
 * @param {Uint8Array} options.model
 * @param {Uint8Array} options.fused
 * @param {Uint8Array|null} options.reference
 * @param {object} options.result  the result from the server
 * @param {() => void} options.onReopened  called after a case was reopened; it must be loaded again
 */
export function createFusion({ details, scene, model, fused, reference, result, onReopened }) {
  const maskLayer = (data) => ({
    data,
    visible: true,
    fill: cached((label) => [...labelColour(label), 70]),
    outline: cached((label) => ({ colour: css(labelColour(label)), width: 1.75, halo: true })),
  });
  const changes = Uint8Array.from(model, (label, voxel) => (label === fused[voxel] ? 0 : 1));
  const changed = { data: changes, visible: result.changed_voxels > 0, fill: cached(() => [...CHANGED, 120]) };
  const truth = {
    data: reference ?? new Uint8Array(model.length),
    visible: reference !== null,
    outline: cached(() => ({ colour: REFERENCE, width: 1.5, dash: [4, 3], halo: true })),
  };
  const viewer = new Viewer(
    scene,
    [
      [maskLayer(model), truth],
      [maskLayer(fused), changed, truth],
    ],
    {
      titles: ["Before: model", "After: model and experts"],
      solid: fused,
      labels: details.labels,
    },
  );
  const start = () => {
    const extent = extentOf(changes, details.shape) ?? extentOf(fused, details.shape);
    if (!extent) return;
    scene.moveTo(extent.centre);
    viewer.main.frame(extent.box);
  };
  const toggle = (text, layer, colour) =>
    h(
      "label.check",
      {},
      h("input", {
        type: "checkbox",
        checked: layer.visible,
        on: {
          change: (event) => {
            layer.visible = event.target.checked;
            scene.redraw();
          },
        },
      }),
      swatch(colour),
      text,
    );
  const missing = result.experts.filter(({ voxels, submitted }) => voxels && !submitted).map(({ expert }) => expert);
  const panel = h(
    "aside.panel",
    {},
    result.scores
      ? scoreTable(result)
      : h("p.note", {}, "No scores: there is no reference for this case, or only the coordinator may see it."),
    h("h2", {}, "Changes"),
    h(
      "dl",
      {},
      h("dt", {}, "Deferred"),
      h("dd", {}, plural(result.deferred_voxels, "voxel")),
      ...(result.left_out_voxels
        ? [h("dt", {}, "Not on the worklist"), h("dd", {}, plural(result.left_out_voxels, "voxel"))]
        : []),
      h("dt", {}, "Changed"),
      h("dd", {}, plural(result.changed_voxels, "voxel")),
      ...(result.scores
        ? [
            h("dt", {}, "Corrected"),
            h("dd.good", {}, plural(result.corrected_voxels, "voxel")),
            h("dt", {}, "Worsened"),
            h("dd.bad", {}, plural(result.spoiled_voxels, "voxel")),
          ]
        : []),
    ),
    result.overruled_voxels
      ? h(
          "p.note",
          {},
          `At ${plural(result.overruled_voxels, "voxel")}, the model and nearby answers contradict the answer given. `,
          "Answers given on this page are final; nnUNetv2_deferral_fuse --evidence would overrule them.",
        )
      : null,
    missing.length
      ? h("p.note", {}, `Not submitted yet: ${missing.join(", ")}. The model's labels are kept in their regions.`)
      : null,
    h("h2", {}, "Experts"),
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
          h("th.number", { title: "Voxels changed, of those asked about" }, "Changed"),
          h("th.number", {}, "Time"),
        ),
      ),
      h(
        "tbody",
        {},
        ...result.experts.map((row, i) =>
          h(
            "tr",
            {},
            nameCell(row.expert, css(expertColour(i + 1))),
            h("td.number", {}, row.voxels ? `${row.submitted ? count(row.changed_voxels) : "–"} of ${count(row.voxels)}` : "–"),
            h("td.number", {}, minutes(row.minutes)),
          ),
        ),
      ),
    ),
    result.readings ? readingTable(result.readings) : null,
    result.people ? submissions(details.case, result.people, onReopened) : null,
    h("h2", {}, "Shown"),
    toggle("Changed voxels", changed, css(CHANGED)),
    reference ? toggle("Reference", truth, REFERENCE) : null,
    h(
      "div.legend",
      {},
      ...details.labels
        .filter(({ label }) => label > 0)
        .map(({ label, name }) => h("span", {}, swatch(css(labelColour(label))), name)),
    ),
    h("h2", {}, "Download"),
    h(
      "div.row",
      {},
      h("a.button", { href: api.downloadPath(details.case, "fused") }, "Fused mask"),
      h("button", { on: { click: () => savePicture(viewer, details.case) } }, "Picture (PNG)"),
    ),
  );
  return { viewer, panel, start, onKey: (event) => viewer.onKey(event), leave: async () => true };
}

/** What became of the regions that two experts read, and how well they agree. */
function readingTable({ regions, dice, kappa, rules }) {
  const number = (value) => (value === null ? "–" : value.toFixed(2));
  const head = ["", "Readers", "Outcome", "Dice", "κ"];
  const rows = regions.map((row) =>
    h(
      "tr",
      { title: `${plural(row.voxels, "voxel")}` },
      h("td", {}, String(row.number)),
      h("td", {}, row.readers.join(", ")),
      h("td", {}, row.disputed && row.outcome === "open" ? "Disputed" : OUTCOMES[row.outcome]),
      h("td.number", {}, number(row.dice)),
      h("td.number", {}, number(row.kappa)),
    ),
  );
  const measure = rules.measure === "dice" ? "1 − Dice" : "the share of differing voxels";
  const decides = rules.adjudicator ? `${rules.adjudicator} decides` : "the region stays open";
  return h(
    "div.readings",
    {},
    h("h2", {}, "Two readers"),
    h(
      "p.note",
      {},
      `Mean Dice ${number(dice)}, κ ${number(kappa)}. `,
      `Where readers differ by more than ${rules.max_difference} (${measure}), ${decides}.`,
    ),
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...head.map((text, i) => h(i > 2 ? "th.number" : "th", {}, text)))),
      h("tbody", {}, ...rows),
    ),
  );
}

/** Who has submitted the case; the coordinator can reopen it with a reason. */
function submissions(name, people, onReopened) {
  const reopen = async (person) => {
    const text = `${person} can then change this case. A copy of the submitted mask is kept, and the reason is logged.`;
    const reason = await askText(`Reopen ${name}?`, text, "Reopen", api.limits.comment);
    if (reason === null) return;
    try {
      await api.reopen(name, person, reason);
    } catch (error) {
      toast(error.message, "error");
      return;
    }
    toast(`${name} is open for ${person} again.`);
    onReopened();
  };
  const submitted = people.filter((each) => each.submitted || each.reopened.length);
  if (!submitted.length) return null;
  return h(
    "div.submissions",
    {},
    h("h2", {}, "Submissions"),
    ...submitted.map((each) =>
      h(
        "div.row",
        {},
        h("span", {}, each.name),
        each.submitted ? h("button.quiet", { on: { click: () => reopen(each.name) } }, "Reopen…") : h("span", {}, "open"),
        each.reopened.length
          ? h("span.note", { title: each.reopened.map(({ reason }) => reason).join("; ") }, `reopened ${each.reopened.length}×`)
          : null,
      ),
    ),
  );
}

function scoreTable({ scores }) {
  const number = (value) => (value === null ? "–" : value.toFixed(3));
  const rows = scores.map(({ region, model, system }) => {
    const gain = model === null || system === null ? null : system - model;
    const sign = gain > 0 ? "+" : gain < 0 ? "−" : "±";
    return h(
      "tr",
      {},
      h("td", {}, region),
      h("td.number", {}, number(model)),
      h("td.number.strong", {}, number(system)),
      h(
        `td.number.${gain > 0 ? "good" : gain < 0 ? "bad" : "even"}`,
        {},
        gain === null ? "–" : `${sign}${Math.abs(gain).toFixed(3)}`,
      ),
    );
  });
  return h(
    "div",
    {},
    h("h2", {}, "Dice with the reference"),
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", {}, "Label"),
          h("th.number", {}, "Model"),
          h("th.number", {}, "System"),
          h("th.number", {}, "Gain"),
        ),
      ),
      h("tbody", {}, ...rows),
    ),
  );
}

/** Download both views side by side as a PNG file. */
async function savePicture(viewer, name) {
  const views = viewer.large.map(({ canvas }) => canvas);
  const picture = document.createElement("canvas");
  picture.width = views.reduce((sum, { width }) => sum + width, 0);
  picture.height = Math.max(...views.map(({ height }) => height));
  const context = picture.getContext("2d");
  let left = 0;
  for (const view of views) {
    context.drawImage(view, left, 0);
    left += view.width;
  }
  const blob = await new Promise((resolve) => picture.toBlob(resolve, "image/png"));
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: `${name}_before_after.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
