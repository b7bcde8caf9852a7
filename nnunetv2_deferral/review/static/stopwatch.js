/** Working time: counts while the page is visible and there was input within the last minute. */

const IDLE_MS = 60000;
const MAX_SECONDS = 3600;

export class Stopwatch {
  constructor() {
    this._last = this._active = performance.now();
    this._seconds = 0;
    this._noted = () => {
      this._count();
      this._active = performance.now();
    };
    for (const event of ["pointermove", "pointerdown", "keydown", "wheel"]) {
      window.addEventListener(event, this._noted, { passive: true });
    }
  }

  /** Seconds counted since the last call. */
  take() {
    this._count();
    const seconds = Math.min(this._seconds, MAX_SECONDS);
    this._seconds = 0;
    return seconds;
  }

  stop() {
    for (const event of ["pointermove", "pointerdown", "keydown", "wheel"]) {
      window.removeEventListener(event, this._noted);
    }
  }

  _count() {
    const now = performance.now();
    const until = Math.min(now, this._active + IDLE_MS);
    if (!document.hidden) this._seconds += Math.max(0, until - this._last) / 1000;
    this._last = now;
  }
}
