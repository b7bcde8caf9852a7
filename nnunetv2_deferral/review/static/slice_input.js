/** Pointer and wheel input of a slice view: navigation, window and level, and the tool. */

/** Pixels of drag that change the level by the width of the window, and the width by a factor of e. */
const LEVEL_PIXELS = 300;
const WIDTH_PIXELS = 200;

export class SliceInput {
  /** @param {import("./slice_view.js").SliceView} view */
  constructor(view) {
    this.view = view;
    this._drag = null;
    const { canvas } = view;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this._onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this._onDown(event));
    canvas.addEventListener("pointermove", (event) => this._onMove(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this._onUp(event));
    canvas.addEventListener("pointerleave", () => {
      view.pointer = null;
      view.request();
    });
  }

  _onWheel(event) {
    event.preventDefault();
    const direction = Math.sign(event.deltaY);
    const zooms = event.ctrlKey || event.metaKey || this.view.scene.isFlat;
    if (zooms) this.view.zoomAt(...this._at(event), -direction);
    else this.view.step(direction);
  }

  _onDown(event) {
    const { view } = this;
    event.preventDefault();
    view.canvas.setPointerCapture(event.pointerId);
    view.canvas.focus({ preventScroll: true });
    const [x, y] = this._at(event);
    this._drag = { kind: this._kindOf(event), x, y, pan: [...view.pan], window: { ...view.scene.window } };
    if (this._drag.kind === "tool") view.tool.down(view, view.toSlice(x, y));
    if (this._drag.kind === "position") this._movePosition(event);
  }

  _kindOf(event) {
    if (event.button === 2) return "window";
    if (event.button === 1 || event.shiftKey) return "pan";
    return this.view.tool ? "tool" : "position";
  }

  _onMove(event) {
    const { view, _drag: drag } = this;
    view.pointer = this._at(event);
    if (drag) this._continue(drag, event);
    view.onMove();
    view.request();
  }

  _continue({ kind, x, y, pan, window }, event) {
    const { view } = this;
    const [dx, dy] = [view.pointer[0] - x, view.pointer[1] - y];
    if (kind === "pan") {
      view.pan = [pan[0] + dx / view.pixelsPerMm, pan[1] + dy / view.pixelsPerMm];
    } else if (kind === "window") {
      const { centre, width } = window;
      view.scene.setWindow(centre + (dy * width) / LEVEL_PIXELS, width * Math.exp(dx / WIDTH_PIXELS));
    } else if (kind === "position") {
      this._movePosition(event);
    } else {
      // Coalesced events contain all points since the last frame, so that fast strokes are smooth.
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) view.tool.move(view, view.toSlice(...this._at(each)));
    }
  }

  _onUp() {
    if (this._drag?.kind === "tool") this.view.tool.up();
    this._drag = null;
    this.view.request();
  }

  _movePosition(event) {
    this.view.pointer = this._at(event);
    this.view.moveToPointer();
  }

  _at(event) {
    const box = this.view.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
}
