/** The tools of step 2 and their keys. */

import { css, labelColour } from "./colours.js";
import { h, swatch } from "./dom.js";
import { TOOLS } from "./tools.js";

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
    this.checks = [
      ["labelLayer", "Your mask", "H"],
      ["modelLayer", "The model's outline", "O"],
      ["regionLayer", "Region borders", "K"],
    ].map(([layer, text, key]) => {
      const box = h("input", { type: "checkbox", on: { change: () => this._show(layer, box.checked) } });
      return { layer, key: key.toLowerCase(), box, row: h("label.check", {}, box, text, h("kbd", {}, key)) };
    });
    this.element = h(
      "div",
      {},
      h("h2", {}, "Tools"),
      h("div.tools", {}, ...this.toolButtons),
      h("label.slider", {}, "Size", this.size, this.sizeText),
      this.toleranceRow,
      h("div.row", {}, this.undo, this.redo),
      h("h2", {}, "Label"),
      h("div.labels", {}, ...this.labelButtons),
      h("h2", {}, "Shown"),
      ...this.checks.map(({ row }) => row),
    );
  }

  /** @returns {boolean} whether the key belongs to a tool */
  onKey(event) {
    const key = event.key.toLowerCase();
    const tool = TOOLS.find((each) => each.key === key);
    const check = this.checks.find((each) => each.key === key);
    const label = this.annotation.details.labels.find((each) => String(each.label) === key);
    if (tool) this._choose(tool.name);
    else if (check) this._show(check.layer, !this.annotation[check.layer].visible);
    else if (label) this._chooseLabel(label.label);
    else if (key === "[" || key === "]") this.annotation.painter.resize(key === "[" ? -1 : 1);
    else return false;
    this.update();
    return true;
  }

  update() {
    const { painter, session, details } = this.annotation;
    for (const button of this.toolButtons) button.classList.toggle("on", button.dataset.name === painter.kind);
    for (const button of this.labelButtons)
      button.classList.toggle("on", Number(button.dataset.label) === painter.label);
    for (const { layer, box } of this.checks) box.checked = this.annotation[layer].visible;
    this.size.value = painter.steps;
    this.sizeText.textContent = details.named ? `${+painter.diameter.toFixed(1)} mm` : `${painter.steps} px`;
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

  _resize() {
    this.annotation.painter.steps = Number(this.size.value);
    this.update();
  }

  _show(layer, visible) {
    this.annotation[layer].visible = visible;
    this.update();
    this.annotation.scene.redraw();
  }
}
