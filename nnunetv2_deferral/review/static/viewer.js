/** The views of a case: large ones side by side, or for volumes one large view beside the other planes. */

import { h } from "./dom.js";
import { SliceView } from "./slice_view.js";
import { openVolumeView } from "./volume_view.js";

const PLANES = ["axial", "coronal", "sagittal"];
export const PLANE_KEYS = { a: "axial", c: "coronal", s: "sagittal" };

/** Pass on what was chosen in a list, after which keys refer to the image again. */
function chosen(list, choose) {
  list.blur();
  choose(Number(list.value));
}

export class Viewer {
  /**
   * @param {import("./scene.js").Scene} scene
   * @param {object[][]} stacks   the layers of each large view
   * @param {object} [options]
   * @param {string[]} [options.titles]  titles of the large views
   * @param {object} [options.tool]
   * @param {{at: number[]}[]} [options.flags]  marked places, if the tool draws none
   * @param {Uint8Array} [options.solid]  the mask for the 3D view
   * @param {{label: number}[]} [options.labels]  the labels of this mask
   */
  constructor(scene, stacks, { titles = [], tool = null, flags = [], solid = null, labels = [] } = {}) {
    this.scene = scene;
    this.solid = solid;
    this.labels = labels.map(({ label }) => label).filter((label) => label > 0);
    this.readout = h("span.readout");
    const onMove = () => this._readOut();
    const options = { tool, flags, onMove };
    this.large = stacks.map((layers, i) => new SliceView(scene, "axial", layers, { ...options, title: titles[i] }));
    const withSmall = !scene.isFlat && stacks.length === 1;
    this.small = withSmall
      ? ["coronal", "sagittal"].map((name) => new SliceView(scene, name, stacks[0], options))
      : [];
    for (const view of this.large) view.linked = this.large.filter((other) => other !== view);
    this.planeButtons = PLANES.map((name) =>
      h(
        "button",
        {
          title: `${name} (${name[0].toUpperCase()})`,
          aria: { label: name[0].toUpperCase() + name.slice(1) },
          on: { click: () => this.setPlane(name) },
        },
        name[0].toUpperCase(),
        h("span.rest", {}, name.slice(1)),
      ),
    );
    this.element = h("section.viewer", {}, this._bar(), this._grid());
    this._markPlane();
    this._listWindows();
    scene.onChange = onMove;
    onMove();
  }

  get main() {
    return this.large[0];
  }

  get views() {
    return [...this.large, ...this.small];
  }

  /** Show another plane in the large view, and the former one in its small view. */
  setPlane(name) {
    if (this.scene.isFlat || this.main.plane.name === name) return;
    const former = this.main.plane.name;
    for (const view of this.large) view.setPlane(name);
    this.small.find((view) => view.plane.name === name)?.setPlane(former);
    this._markPlane();
  }

  resetViews() {
    for (const view of this.views) view.resetView();
    this.scene.choosePreset(0);
  }

  /** Note that the data of a layer has changed. */
  changed(layer) {
    for (const view of this.views) view.changed(layer);
  }

  /** Note that the data of a layer has changed inside a rectangle of one view. */
  changedIn(view, layer, rect) {
    view.changed(layer, rect);
    for (const other of this.views) if (other !== view) other.changed(layer);
  }

  remove() {
    for (const view of this.views) view.remove();
  }

  /** Handle the keys of all steps. @returns {boolean} whether the key was handled */
  onKey(event) {
    const key = event.key.toLowerCase();
    if (key in PLANE_KEYS) this.setPlane(PLANE_KEYS[key]);
    else if (key === "arrowup" || key === "pageup") this.main.step(key === "pageup" ? -5 : -1);
    else if (key === "arrowdown" || key === "pagedown") this.main.step(key === "pagedown" ? 5 : 1);
    else if (key === "+" || key === "=") this._zoom(1);
    else if (key === "-") this._zoom(-1);
    else if (key === "r") this.resetViews();
    else if (key === "j") this.views.find((view) => view.pointer)?.moveToPointer();
    else if (/^Digit[1-9]$/.test(event.code)) this.scene.choosePreset(Number(event.code.at(-1)));
    else return false;
    return true;
  }

  _zoom(direction) {
    for (const view of this.large) view.zoomAt(view.canvas.clientWidth / 2, view.canvas.clientHeight / 2, direction);
  }

  _bar() {
    const { scene } = this;
    const select = (title, entries, choose) =>
      h(
        "select",
        { title, on: { change: ({ target }) => chosen(target, choose) } },
        ...entries.map((text, i) => h("option", { value: i }, text)),
      );
    const parts = [];
    if (!scene.isFlat) parts.push(h("div.segmented", {}, ...this.planeButtons));
    if (!scene.colour && scene.channels.length > 1) {
      parts.push(
        select("Channel", scene.channelNames, (i) => {
          scene.channel = i;
          this._listWindows();
          scene.redraw();
        }),
      );
    }
    this.windowSelect = h("select", {
      title: "Window (Shift+1, 2, … or R)",
      on: { change: ({ target }) => chosen(target, (place) => scene.choosePreset(place)) },
    });
    parts.push(this.windowSelect);
    parts.push(
      h(
        "button",
        { title: "Reset zoom, pan and window (R)", on: { click: () => this.resetViews() } },
        "Reset",
      ),
    );
    if (this.solid && !scene.isFlat) {
      parts.push(
        h(
          "button",
          { title: "Planes and a rendering", on: { click: () => openVolumeView(scene, this.solid, this.labels) } },
          "3D",
        ),
      );
    }
    return h("div.viewer-bar", {}, ...parts, this.readout);
  }

  _grid() {
    const cell = (view) => h("div.cell", {}, view.canvas);
    const small = this.small.length ? h("div.side", {}, ...this.small.map(cell)) : null;
    return h(`div.grid.columns-${this.large.length}`, {}, ...this.large.map(cell), small);
  }

  _markPlane() {
    for (const [i, button] of this.planeButtons.entries()) {
      button.classList.toggle("on", PLANES[i] === this.main.plane.name);
    }
  }

  _listWindows() {
    const names = [...this.scene.presets.map(({ name }) => name), "Set by hand"];
    this.windowSelect.replaceChildren(...names.map((name, i) => h("option", { value: i }, name)));
    this.windowSelect.lastChild.hidden = true; // shown while it is true, but cannot be chosen
  }

  _readOut() {
    const { name, centre, width } = this.scene.window;
    const place = this.scene.presets.findIndex((preset) => preset.name === name);
    this.windowSelect.value = place < 0 ? this.scene.presets.length : place;
    const digits = width < 10 ? 3 : 0;
    const view = this.views.find((each) => each.pointer);
    const value = view ? view.valueUnderPointer() : null;
    const shown = value === null ? "" : `Value ${value}   `;
    // In a narrow bar the line breaks before the window.
    const window = `W ${width.toFixed(digits)}  L ${centre.toFixed(digits)}`.replaceAll(" ", "\u00a0");
    this.readout.textContent = `${shown}${window}`;
  }
}
