/** The tools of step 2 and their keys. */

import { CURRENT_REGION, DONE_REGION, OPEN_REGION, css, labelColour } from "./colours.js";
import { h, swatch } from "./dom.js";
import { legend, lineSample } from "./legend.js";
import { TOOLS } from "./tools.js";

/** Outlines of regions; answered ones also differ by their dashes. */
export const REGION_OUTLINES = {
  current: { colour: CURRENT_REGION, width: 2.25, halo: true },
  open: { colour: OPEN_REGION, width: 1.75, halo: true },
  done: { colour: DONE_REGION, width: 1.75, dash: [9, 4], halo: true },
};
const MEANING = { current: "this one", open: "open", done: "answered" };

export class ToolPanel {
  /** @param {import("./annotate.js").Annotation} annotation */
  constructor(annotation) {
    this.annotation = annotation;
    const { painter } = annotation;
    this.toolButtons = TOOLS.map(({ name, key, title }) =>
      h(
        "button",
        { title: `${title} (${key.toUpperCase()})`, data: { name }, on: { click: () => this._choose(name) } },
        title,
        h("kbd", {}, key.toUpperCase()),
      ),
    );
    this.labelButtons = annotation.details.labels.map(({ label, name }) =>
      h(
        "button.label",
        { data: { label }, on: { click: () => this._chooseLabel(label) } },
        label ? swatch(css(labelColour(label))) : swatch("transparent"),
        name,
        label < 10 ? h("kbd", {}, String(label)) : null,
      ),
    );
    this.size = h("input", {
      type: "range",
      min: 1,
      max: 60,
      title: "Brush size ([ and ])",
      on: { input: () => this._resize() },
    });
    this.sizeText = h("span.value");
    this.tolerance = h("input", {
      type: "range",
      min: 2,
      max: 50,
      value: 100 * painter.tolerance,
      on: {
        input: () => {
          painter.tolerance = Number(this.tolerance.value) / 100;
        },
      },
    });
    this.toleranceRow = h(
      "label.slider",
      { title: "Maximum difference in grey value from the start of the stroke" },
      "Tolerance",
      this.tolerance,
    );
    this.undo = h("button", { title: "Undo (Ctrl+Z)", on: { click: () => annotation.undo() } }, "Undo");
    this.redo = h("button", { title: "Redo (Ctrl+Shift+Z)", on: { click: () => annotation.redo() } }, "Redo");
    const modelLine = annotation.modelLayer.outline(painter.label);
    this.checks = [
      ["labelLayer", "Your mask", "H", []],
      annotation.details.blind ? null : ["modelLayer", "The model's outline", "O", [], lineSample(modelLine)],
      ...annotation.readingLayers.map((layer, place) => {
        return [layer, `Reading ${place + 1}`, place ? "I" : "U", [], lineSample(layer.outline(painter.label))];
      }),
      ["regionLayer", "Region borders", "K", Object.keys(MEANING).map((key) => [REGION_OUTLINES[key], MEANING[key]])],
    ].filter(Boolean).map(([of, text, key, samples, sample]) => {
      const layer = typeof of === "string" ? annotation[of] : of;
      const box = h("input", { type: "checkbox", on: { change: () => this._show(layer, box.checked) } });
      const row = [h("label.check", {}, box, text, sample, h("kbd", {}, key)), samples.length ? legend(samples) : ""];
      return { layer, key: key.toLowerCase(), box, row };
    });
    this.opacity = h("input", {
      type: "range",
      min: 0,
      max: 100,
      title: "Opacity of your mask; V shows its outline only",
      on: { input: () => annotation.setOpacity(Number(this.opacity.value)) },
    });
    this.ball = h("input", {
      type: "checkbox",
      on: {
        change: () => {
          painter.isBall = this.ball.checked;
        },
      },
    });
    const between = h(
      "button",
      {
        title: "Fill this region between the slices that you have drawn in (Z)",
        on: { click: () => annotation.fillBetween() },
      },
      "Fill between slices",
      h("kbd", {}, "Z"),
    );
    this.element = h(
      "div",
      {},
      h("h2", {}, "Tools"),
      h("div.tools", {}, ...this.toolButtons),
      h("label.slider", {}, "Size", this.size, this.sizeText),
      this.toleranceRow,
      annotation.scene.isFlat ? null : h("label.check", {}, this.ball, "Through slices, as a ball", h("kbd", {}, "Y")),
      h("div.row", {}, this.undo, this.redo, annotation.scene.isFlat ? null : between),
      h("h2", {}, "Label"),
      h("div.labels", {}, ...this.labelButtons),
      h("h2", {}, "Shown"),
      ...this.checks.flatMap(({ row }) => row),
      h("label.slider", {}, "Fill", this.opacity, h("kbd", {}, "V")),
    );
  }

  /** @returns {boolean} whether the key belongs to a tool */
  onKey(event) {
    const key = event.key.toLowerCase();
    const { painter } = this.annotation;
    const tool = TOOLS.find((each) => each.key === key);
    const check = this.checks.find((each) => each.key === key);
    const label = this.annotation.details.labels.find((each) => String(each.label) === key);
    if (tool) this._choose(tool.name);
    else if (check) this._show(check.layer, !check.layer.visible);
    else if (label) this._chooseLabel(label.label);
    else if (key === "v") this._toggleFill();
    else if (key === "z") this.annotation.fillBetween();
    else if (key === "y" && !this.annotation.scene.isFlat) painter.isBall = !painter.isBall;
    else if (key === "[" || key === "]") painter.resize(key === "[" ? -1 : 1);
    else return false;
    this.update();
    return true;
  }

  update() {
    const { painter, session, details } = this.annotation;
    for (const button of this.toolButtons) button.classList.toggle("on", button.dataset.name === painter.kind);
    for (const button of this.labelButtons)
      button.classList.toggle("on", Number(button.dataset.label) === painter.label);
    for (const { layer, box } of this.checks) box.checked = layer.visible;
    this.size.value = painter.steps;
    this.sizeText.textContent = details.named ? `${+painter.diameter.toFixed(1)} mm` : `${painter.steps} px`;
    this.ball.checked = painter.isBall;
    this.opacity.value = this.annotation.opacity;
    this.toleranceRow.hidden = painter.kind !== "smart";
    const { undo, redo } = session.history;
    this.undo.disabled = painter.locked || !undo;
    this.redo.disabled = painter.locked || !redo;
  }

  _choose(name) {
    this.annotation.painter.choose(name);
    this.update();
  }

  _chooseLabel(label) {
    const { painter } = this.annotation;
    painter.label = label;
    if (painter.kind === "eraser") painter.choose("brush");
    this.update();
  }

  /** Show the outline of the mask only, or again its fill. */
  _toggleFill() {
    const { opacity } = this.annotation;
    if (opacity) this._filled = opacity;
    this.annotation.setOpacity(opacity ? 0 : (this._filled ?? 30));
  }

  _resize() {
    this.annotation.painter.steps = Number(this.size.value);
    this.update();
  }

  _show(layer, visible) {
    layer.visible = visible;
    this.update();
    this.annotation.scene.redraw();
  }
}
