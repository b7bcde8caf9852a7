/**
 * Automatic saving: shortly after the last change, one save at a time, with retries after a lost connection.
 *
 * A save is repeated with the same key until it is answered, so that the server recognises it if its response was lost.
 * After a refusal nothing more is saved and the page must be reloaded.
 */

const QUIET_MS = 1200;
/** Maximum time between saves while painting continues. */
const LONGEST_MS = 5000;
const RETRY_MS = [1000, 2000, 5000, 10000];

export class Saver {
  /**
   * @param {object} options
   * @param {import("./paint.js").PaintSession} options.session
   * @param {number} options.revision
   * @param {(body: object) => Promise<{revision: number}>} options.send  rejects with an error whose `refused` is true
   *   if a retry would fail again
   * @param {() => {done: number[], remarks: object}} options.answers  the answered regions, confidence and flags
   * @param {() => number} options.takeSeconds  working time since the last call
   * @param {(state: string, reason?: string) => void} options.onState  "saved", "unsaved", "saving", "lost", "refused"
   */
  constructor({ session, revision, send, answers, takeSeconds, onState }) {
    Object.assign(this, { session, revision, send, answers, takeSeconds, onState });
    this.state = "saved";
    this._pending = null;
    this._timer = null;
    this._running = null;
    this._failures = 0;
    this._stale = false;
    this._since = 0;
  }

  /** Note a change and schedule a save. */
  touch() {
    if (this.state === "refused") return;
    if (this.state === "saved") this._become("unsaved");
    if (!this._stale) this._since = Date.now();
    this._stale = true;
    if (!this._running && !this._pending) this._scheduleNext();
  }

  /** Save pending changes immediately. @returns {Promise<boolean>} whether everything is saved */
  async flush() {
    clearTimeout(this._timer);
    if (this.state === "refused") return false;
    for (let tries = 0; tries < 3 && (this._stale || this._pending); tries++) {
      this._running ??= this._run();
      await this._running;
      if (this.state === "refused" || this.state === "lost") return false;
    }
    return this.state === "saved";
  }

  /** Whether the page can be left without losing changes that could still be saved. */
  get isSafe() {
    return this.state === "saved" || this.state === "refused";
  }

  /** Stop saving, because the page shows another case. */
  stop() {
    clearTimeout(this._timer);
    this.state = "refused";
  }

  _scheduleNext() {
    this._schedule(Math.max(0, Math.min(QUIET_MS, this._since + LONGEST_MS - Date.now())));
  }

  _schedule(delay) {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => {
      this._running ??= this._run();
    }, delay);
  }

  async _run() {
    if (!this._pending) {
      this._stale = false;
      const changes = this.session.changes();
      const body = { runs: changes.runs, ...this.answers(), seconds: this.takeSeconds(), key: crypto.randomUUID() };
      this._pending = { changes, body: { revision: this.revision, ...body } };
    }
    this._become("saving");
    try {
      const receipt = await this.send(this._pending.body);
      this.session.confirm(this._pending.changes);
      this.revision = receipt.revision;
      this._pending = null;
      this._failures = 0;
      if (this.state !== "refused") this._become(this._stale ? "unsaved" : "saved");
      if (this._stale) this._scheduleNext();
    } catch (error) {
      if (error.refused) {
        this._become("refused", error.message);
      } else if (this.state !== "refused") {
        this._become("lost", error.message);
        this._schedule(RETRY_MS[Math.min(this._failures++, RETRY_MS.length - 1)]);
      }
    } finally {
      this._running = null;
    }
  }

  _become(state, reason) {
    this.state = state;
    this.onState(state, reason);
  }
}
