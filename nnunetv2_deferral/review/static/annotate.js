/** Step 2: annotation, region by region. */

import * as api from "./api.js";
import { cached } from "./assign.js";
import { DONE_REGION, READINGS, css, labelColour, pale } from "./colours.js";
import { ask, askText, toast } from "./dialogs.js";
import { bar, expected, h, plural, priority } from "./dom.js";
import { flagList, placeText } from "./flags.js";
import { keep, kept } from "./kept.js";
import { lineSample, showCard } from "./legend.js";
import { PaintSession } from "./paint.js";
import { bestOpenRegion, neighbourRegion, nextOpenRegion } from "./regions.js";
import { Saver } from "./saver.js";
import { Stopwatch } from "./stopwatch.js";
import { Painter } from "./tools.js";
import { REGION_OUTLINES, ToolPanel } from "./tool_panel.js";
import { Viewer } from "./viewer.js";

const CANNOT_TELL = "cannot tell";
const CONFIDENCES = ["high", "medium", "low"];
const [ASKED, SUBMIT] = [
  "The model asks about the outlined regions only. White: this one; orange: open; dashed green: answered.",
  "When all regions are answered, Ctrl+Enter submits the case. Press ? for all keys.",
];
const BLIND_VISIT = [
  ASKED,
  "Paint what you see inside the region: brush B, eraser E. The model's mask is shown once the case is submitted.",
  "Enter: the region is right as painted. T: you cannot tell.",
  SUBMIT,
];
const DECISION_VISIT = [
  "Two readers disagree about the outlined regions; the order of the readings does not reveal who made which.",
  "Q takes the first reading, W the second. Or correct the coloured mask yourself, and accept it with Enter.",
  "U and I show or hide the readings. T: you cannot tell, and the region stays open.",
  SUBMIT,
];
const FIRST_VISIT = [
  ASKED,
  "Correct the coloured mask inside the region: brush B, eraser E. Dotted: the model's mask.",
  "Enter: the region is right as it is now. M: the model is right. T: you cannot tell.",
  SUBMIT,
];

export class Annotation {
  /**
   * @param {object} options
   * @param {object} options.details
   * @param {import("./scene.js").Scene} options.scene
   * @param {Uint8Array} options.model
   * @param {Uint16Array} options.regions
   * @param {Uint8Array} options.labels    the expert's current answers
   * @param {Uint8Array[]} options.readings  for an adjudicator, the two readings; else empty
   * @param {(state: string, reason?: string) => void} options.onState  called when the state of saving changes
   * @param {() => void} options.onProgress
   * @param {() => void} options.onSubmitted
   * @param {() => void} options.onReplaced  called after a mask was uploaded; the case must be reloaded
   */
  constructor({ details, scene, model, regions, labels, readings, onState, onProgress, onSubmitted, onReplaced }) {
    Object.assign(this, { details, scene, readings, onProgress, onSubmitted, onReplaced });
    this.done = new Set(details.done);
    /** By number of the region: "high", "medium", "low" or "cannot tell". */
    this.confidence = new Map(Object.entries(details.remarks.confidence).map(([n, value]) => [Number(n), value]));
    this.flags = [...details.remarks.flags];
    this.current = null;
    this.session = new PaintSession({ labels, model, regions });
    this.stopwatch = new Stopwatch();
    this.saver = new Saver({
      session: this.session,
      revision: details.revision,
      send: (body) => api.save(details.case, body),
      answers: () => ({
        done: [...this.done],
        remarks: { confidence: Object.fromEntries(this.confidence), flags: this.flags },
      }),
      takeSeconds: () => this.stopwatch.take(),
      onState: (state, reason) => {
        onState(state, reason);
        if (state === "refused") {
          this.painter.locked = true;
          this._update();
        }
      },
    });
    const first = details.labels.find(({ label }) => label > 0);
    this.painter = new Painter({
      session: this.session,
      scene,
      label: first.label,
      onTouched: (view, touched) => this._touched(view, touched),
      onStroke: () => this._changed(),
      onFlag: (voxel) => this._flag(voxel),
    });
    this._makeLayers(model, regions, labels);
    const layers = [this.labelLayer, this.modelLayer, ...this.readingLayers, this.regionLayer];
    this.viewer = new Viewer(scene, [layers], {
      tool: this.painter,
      flags: this.flags,
      solid: labels,
      labels: details.labels,
    });
    this.tools = new ToolPanel(this);
    this.progress = h("div");
    this.list = h("div.regions");
    this.flagged = h("div");
    this.panel = h(
      "aside.panel",
      {},
      this.progress,
      this.list,
      this._regionActions(),
      this.tools.element,
      this.flagged,
      this._files(),
      h("div.submit", {}, this.submitButton),
    );
    this._update();
  }

  /** Start with the first open region. */
  start() {
    const { regions } = this.details;
    this.visit(bestOpenRegion(regions, this.done) ?? regions[0]);
    const lines = this.details.decides ? DECISION_VISIT : this.details.blind ? BLIND_VISIT : FIRST_VISIT;
    const name = this.details.decides ? "first decision" : "first visit";
    this._closeCard = showCard(this.viewer.element, name, "What is asked of you", lines);
  }

  /** Go to a region. */
  visit(region) {
    if (!region) return;
    this.painter.cancel();
    this.current = region;
    this.scene.moveTo(region.centre);
    for (const view of this.viewer.views) view.frame(region.box);
    this._update();
  }

  /** Leave the current region for later. */
  visitNext() {
    this._visitOr(nextOpenRegion(this.details.regions, this.done, this.current?.number));
  }

  _visitOr(next) {
    if (next) this.visit(next);
    else toast("All regions are answered. Submit the case with Ctrl+Enter.");
  }

  /** Mark the current region as answered with its current labels. */
  finishRegion() {
    if (this.painter.locked || !this.current) return;
    if (this.confidence.get(this.current.number) === CANNOT_TELL) this.confidence.delete(this.current.number);
    this._answered();
  }

  _answered() {
    this.done.add(this.current.number);
    this.saver.touch();
    this._visitOr(bestOpenRegion(this.details.regions, this.done));
    this._update();
  }

  /** Answer the current region with the model's labels. */
  acceptModel() {
    if (this.painter.locked || !this.current || this.details.blind) return;
    this._take(this.session.model);
    this.finishRegion();
  }

  /** Answer the current region with a reading, 0 or 1. */
  acceptReading(place) {
    if (this.painter.locked || !this.current || !this.readings[place]) return;
    this._take(this.readings[place]);
    this.finishRegion();
  }

  /** Give no answer to the current region: the model's labels are kept there. */
  cannotTell() {
    if (this.painter.locked || !this.current) return;
    this._take(this.session.model);
    this.confidence.set(this.current.number, CANNOT_TELL);
    this._answered();
  }

  /** State the confidence in the current region, or nothing if it was stated already. */
  setConfidence(value) {
    if (this.painter.locked || !this.current) return;
    const { number } = this.current;
    if (this.confidence.get(number) === value) this.confidence.delete(number);
    else this.confidence.set(number, value);
    this._changed();
  }

  /** Set the labels of the current region to those of a volume. */
  _take(volume) {
    this.session.begin();
    this.session.setRegion(this.current, this.scene.shape, volume);
    this.session.commit();
    this.viewer.changed(this.labelLayer);
  }

  /** Fill the current region between the slices in which it was drawn in the plane that is shown. */
  fillBetween() {
    if (this.painter.locked || !this.current || this.scene.isFlat) return;
    this.session.begin();
    const changed = this.session.fillBetween(this.current, this.viewer.main.plane, this.scene.shape);
    this.session.commit();
    if (changed) this._repainted();
    else if (changed === null) toast("Draw this region in two slices with a gap between them, then press Z to fill it.");
  }

  async _flag(voxel) {
    this.painter.choose("brush");
    if (this.flags.length >= api.limits.flags) {
      toast(`At most ${api.limits.flags} places can be flagged in a case.`, "warning");
      return;
    }
    const text = `The coordinator sees the place (${placeText(voxel)}) and your comment at once.`;
    const comment = await askText("What do you see here?", text, "Flag", api.limits.comment);
    if (comment !== null) this.flags.push({ at: voxel, comment });
    this._changed();
  }

  /** Reopen an answered region. */
  reopen(number) {
    if (this.painter.locked) return;
    this.done.delete(number);
    if (this.confidence.get(number) === CANNOT_TELL) this.confidence.delete(number);
    this._changed();
  }

  undo() {
    if (!this.painter.locked && this.session.undo()) this._repainted();
  }

  redo() {
    if (!this.painter.locked && this.session.redo()) this._repainted();
  }

  onKey(event) {
    const key = event.key.toLowerCase();
    const withControl = event.ctrlKey || event.metaKey;
    if (this.painter.isDrawing) return true; // the stroke ends first
    if (withControl) {
      if (key === "enter") this.submit();
      else if (key === "z") event.shiftKey ? this.redo() : this.undo();
      else if (key === "y") this.redo();
      else return false;
      return true;
    }
    // A key that is held down answers one region only.
    if (event.repeat && ["enter", "m", "t", "q", "w", "z"].includes(key)) return true;
    if (key === "enter" && this.painter.isOpen) this.painter.close();
    else if (key === "enter") this.finishRegion();
    else if (key === "escape" && this.painter.isOpen) this.painter.cancel();
    else if (key === "escape") this._closeCard?.();
    else if (key === "m") this.acceptModel();
    else if (key === "t") this.cannotTell();
    else if ((key === "q" || key === "w") && this.details.decides) this.acceptReading(key === "q" ? 0 : 1);
    else if (key === "l") this._nextConfidence();
    else if (key === "n" || key === " ") this.visitNext();
    else if (key === "," || key === ".")
      this.visit(neighbourRegion(this.details.regions, this.current?.number, key === "," ? -1 : 1));
    else if (/^[0-9]$/.test(key)) this.tools.onKey(event); // a label or nothing; windows have other characters
    else if (!this.tools.onKey(event)) return this.viewer.onKey(event);
    this.viewer.main.request();
    return true;
  }

  /** Save pending changes before the page shows another step. @returns {Promise<boolean>} whether it may leave */
  async leave() {
    const saved = await this.saver.flush();
    if (!saved && this.saver.state === "lost") {
      const go = await ask("Leave without saving?", "Your last changes could not be saved yet.", "Leave");
      if (!go) return false;
    }
    this.saver.stop();
    this.stopwatch.stop();
    return true;
  }

  /** Submit the case after confirmation, if all regions are answered. */
  async submit() {
    const missing = this.details.regions.length - this.done.size;
    if (missing) toast(`${plural(missing, "region")} without an answer.`, "warning");
    if (missing || this.painter.locked || this.submitButton.disabled) return;
    this.submitButton.disabled = true;
    if (!(await this._confirmed())) this._update();
  }

  async _confirmed() {
    if (!(await this.saver.flush())) return false;
    const regions = plural(this.details.regions.length, "region");
    const what = this.details.decides ? "decisions on" : "answers to";
    const text = `Your ${what} ${regions} become final and you will see the result.`;
    if (!(await ask("Submit this case?", text, "Submit"))) return false;
    try {
      await api.submit(this.details.case, this.saver.revision);
    } catch (error) {
      toast(error.message, "error");
      return false;
    }
    this.saver.stop();
    this.onSubmitted();
    return true;
  }

  _makeLayers(model, regions, labels) {
    this.labelLayer = {
      data: labels,
      visible: true,
      outline: cached((label) => ({ colour: css(labelColour(label)), width: 1.5 })),
    };
    this._fillLabels(kept("opacity", 30));
    this.modelLayer = {
      data: model,
      visible: !this.details.blind,
      outline: cached((label) => ({ colour: css(pale(labelColour(label))), width: 1.5, dash: [2, 3], halo: true })),
    };
    this.readingLayers = this.readings.map((data, place) => ({
      data,
      visible: true,
      outline: cached(() => ({ colour: READINGS[place], width: 2, dash: place ? [7, 4] : undefined, halo: true })),
    }));
    this.regionLayer = {
      data: regions,
      visible: true,
      outline: (number) =>
        REGION_OUTLINES[number === this.current?.number ? "current" : this.done.has(number) ? "done" : "open"],
    };
  }

  /** Fill the expert's mask with an opacity in per cent; 0 leaves its outline. */
  setOpacity(opacity) {
    this._fillLabels(opacity);
    keep("opacity", opacity);
    this.viewer.changed(this.labelLayer);
  }

  _fillLabels(opacity) {
    this.opacity = opacity;
    this.labelLayer.fill = cached((label) => [...labelColour(label), Math.round(2.55 * opacity)]);
  }

  _touched(view, { changed, own, blocked, rect }) {
    if (changed && rect) this.viewer.changedIn(view, this.labelLayer, rect);
    if (blocked.length && !own) {
      view.showBlocked(blocked);
      toast("Outside your regions: nothing is painted here.", "warning", 1400);
    } else if (blocked.length) {
      view.showBlocked(blocked);
    }
  }

  _nextConfidence() {
    const at = CONFIDENCES.indexOf(this.confidence.get(this.current?.number));
    this.setConfidence(CONFIDENCES[(at + 1) % CONFIDENCES.length]);
  }

  _changed() {
    // What is painted into a region that could not be told is an answer after all.
    for (const region of this.details.regions) {
      const untold = this.confidence.get(region.number) === CANNOT_TELL;
      if (untold && this.session.differs(region, this.scene.shape)) this.confidence.delete(region.number);
    }
    this.saver.touch();
    this._update();
  }

  _repainted() {
    this.viewer.changed(this.labelLayer);
    this._changed();
  }

  _update() {
    const { regions } = this.details;
    const [done, all] = [this.done.size, regions.length];
    this.progress.replaceChildren(
      h("h2", {}, "Your regions"),
      h("p.figure", {}, `${done} of ${all}`, h("span", {}, " answered")),
      bar(all ? done / all : 1, DONE_REGION),
      ...this.details.reopened.slice(-1).map(({ reason }) => h("p.note", {}, `Reopened by the coordinator: ${reason}`)),
      this.current
        ? h("p.expected", { title: worth(this.current) }, `Region ${describe(this.current)}.`)
        : h("p.expected"),
    );
    const rows = regions.slice(0, 400).map((region) => this._row(region));
    this.list.replaceChildren(...rows);
    this.list.querySelector(".current")?.scrollIntoView({ block: "nearest" });
    const locked = this.painter.locked || !this.current;
    const answers = [this.acceptButton, ...this.readingButtons, this.finishButton, this.untoldButton];
    for (const button of [...answers, ...this.confidenceButtons]) {
      button.disabled = locked;
    }
    const confidence = this.confidence.get(this.current?.number);
    for (const button of this.confidenceButtons) button.classList.toggle("on", button.dataset.value === confidence);
    this.untoldButton.classList.toggle("on", confidence === CANNOT_TELL);
    this._listFlags();
    this.submitButton.disabled = this.painter.locked || done < all;
    this.tools.update();
    this.scene.redraw();
    this.onProgress(done);
  }

  _row(region) {
    const isDone = this.done.has(region.number);
    const row = h(
      "div.region",
      {},
      h(
        "button.region-name",
        { title: `${worth(region)}`, on: { click: () => this.visit(region) } },
        h("span.state", {}, isDone ? (this.confidence.get(region.number) === CANNOT_TELL ? "?" : "✓") : ""),
        `Region ${region.number}`,
        h("span.size", {}, priority(region.gain)),
      ),
      isDone
        ? h(
            "button.quiet",
            { title: "Reopen this region", on: { click: () => this.reopen(region.number) } },
            "Reopen",
          )
        : null,
    );
    row.classList.toggle("current", region === this.current);
    row.classList.toggle("done", isDone);
    return row;
  }

  _regionActions() {
    this.finishButton = h(
      "button.primary",
      { on: { click: () => this.finishRegion() } },
      "Answered, next",
      h("kbd", {}, "Enter"),
    );
    this.acceptButton = h(
      "button",
      { hidden: this.details.blind, on: { click: () => this.acceptModel() } },
      "The model is right here",
      h("kbd", {}, "M"),
    );
    this.readingButtons = this.readingLayers.map((layer, place) =>
      h(
        "button",
        { on: { click: () => this.acceptReading(place) } },
        h("span", {}, lineSample(layer.outline(1)), ` Reading ${place + 1} is right here`),
        h("kbd", {}, place ? "W" : "Q"),
      ),
    );
    this.untoldButton = h(
      "button",
      { title: "No answer: the model's labels are kept here", on: { click: () => this.cannotTell() } },
      "I cannot tell",
      h("kbd", {}, "T"),
    );
    this.confidenceButtons = CONFIDENCES.map((value) =>
      h(
        "button",
        { title: "Confidence in this region (L)", data: { value }, on: { click: () => this.setConfidence(value) } },
        value,
      ),
    );
    this.nextButton = h("button", { on: { click: () => this.visitNext() } }, "Next open region", h("kbd", {}, "N"));
    return h(
      "div.actions",
      {},
      this.finishButton,
      ...this.readingButtons,
      this.acceptButton,
      this.untoldButton,
      this.nextButton,
      h(
        "div.confidence",
        {},
        "Confidence",
        h("div.segmented", {}, ...this.confidenceButtons),
        h("kbd", {}, "L"),
      ),
    );
  }

  _listFlags() {
    const visit = ({ at }) => this.scene.moveTo(at);
    const remove = (flag) => {
      if (this.painter.locked) return;
      this.flags.splice(this.flags.indexOf(flag), 1);
      this._changed();
    };
    this.flagged.replaceChildren(
      h("h2", {}, "Outside of your regions"),
      this.flags.length
        ? flagList(this.flags, visit, remove)
        : h("p.note", {}, "Do you see something that you are not asked about? Press X and click on it."),
    );
  }

  _files() {
    this.submitButton = h(
      "button.primary",
      { on: { click: () => this.submit() } },
      "Submit case",
      h("kbd", {}, "Ctrl+Enter"),
    );
    const picker = h("input", {
      type: "file",
      hidden: true,
      accept: this.details.endings.map((ending) => `.${ending.split(".").at(-1)}`).join(),
      on: { change: (event) => this._upload(event.target) },
    });
    const path = (what) => api.downloadPath(this.details.case, what);
    return h(
      "div",
      {},
      h(
        "details",
        {},
        h("summary", {}, "Work in ITK-SNAP or 3D Slicer instead"),
        h(
          "p",
          {},
          "Download the mask, edit it inside your regions only and upload it. All regions then count as answered.",
        ),
        h(
          "div.row",
          {},
          h("a.button", { href: path("mask") }, "Mask"),
          h("a.button", { href: path("regions") }, "Regions"),
          h("button", { on: { click: () => picker.click() } }, "Upload mask…"),
          picker,
        ),
      ),
    );
  }

  async _upload(picker) {
    const [file] = picker.files;
    picker.value = "";
    if (!file || !(await this.saver.flush())) return;
    const go = await ask("Replace your answers?", `All your regions get the labels in ${file.name}.`, "Upload");
    if (!go) return;
    try {
      await api.upload(this.details.case, this.saver.revision, file);
    } catch (error) {
      toast(error.message, "error", 12000);
      return;
    }
    this.saver.stop();
    this.onReplaced();
  }
}

/** A description of a region. */
function describe({ number, voxels, gain, rank }) {
  const place = rank === null ? "" : `, number ${rank} of the worklist`;
  return `${number}: ${plural(voxels, "voxel")}, ${priority(gain)} priority${place}`;
}

const worth = ({ number, gain }) => `Your answer to region ${number} is ${expected(gain)}`;
