/** Working time: runs while the page is seen and something was done in the last minute. */

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

  /** Seconds since they were last taken. */
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
