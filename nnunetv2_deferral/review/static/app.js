/** The page: header, list of cases, and the current step of the current case. */

import * as api from "./api.js";
import { Annotation } from "./annotate.js";
import { createAssignment } from "./assign.js";
import { css, expertColour } from "./colours.js";
import { showKeys, toast } from "./dialogs.js";
import { bar, count, expected, h, minutes, nameCell, percent, plural, priority, setGainUnit } from "./dom.js";
import { createFusion } from "./fusion.js";
import { cutter } from "./names.js";
import { Scene } from "./scene.js";

const STEPS = [
  [1, "Assignment"],
  [2, "Annotation"],
  [3, "Fusion"],
];
/** Time between looks at the list while cases are being read. */
const READING_MS = 1500;
/** Size of an image up to which the next one is loaded ahead. */
const AHEAD_BYTES = 256e6;
const STATES = {
  saved: "Saved",
  unsaved: "Not saved yet",
  saving: "Saving…",
  lost: "Not saved",
  refused: "Not saved",
};

class App {
  constructor(me) {
    this.me = me;
    this.cases = [];
    this.byName = false;
    this.step = null;
    this.shown = null;
    this.list = h("nav.cases");
    this.steps = h("div.steps");
    this.state = h("span.save-state");
    this.banner = h("div.banner", { hidden: true });
    this.stage = h("main");
    const role = me.role === "coordinator" ? "Coordinator" : me.name;
    document.body.append(
      h(
        "header",
        {},
        h("h1", {}, "Expert review"),
        this.steps,
        h("span.fill"),
        this.state,
        h("span.person", { title: role }, role),
        h("button.help", { title: "Keys and mouse (?)", on: { click: showKeys } }, "?"),
      ),
      this.banner,
      h("div.body", {}, this.list, this.stage),
    );
    window.addEventListener("hashchange", () => this.navigate());
    window.addEventListener("keydown", (event) => this._onKey(event));
    window.addEventListener("beforeunload", (event) => {
      if (this.step?.saver && !this.step.saver.isSafe) event.preventDefault();
    });
    // After a mouse click, keys refer to the image again and not to the button.
    document.addEventListener("click", (event) => {
      const focused = document.activeElement;
      if (event.detail > 0 && focused?.matches("button, summary, input") && !focused.closest("dialog")) focused.blur();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.step?.saver?.flush();
    });
  }

  async start() {
    await this._readCases();
    await this.navigate();
    while (this.isReading) {
      await new Promise((resolve) => setTimeout(resolve, READING_MS));
      await this._readCases().catch((error) => {
        if (!(error instanceof api.ApiError)) throw error; // the server is away; what is shown stays
      });
      if (this.shown) this._drawList(this.cases.find((entry) => entry.case === this.entry.case));
      else await this.navigate();
    }
  }

  /** Show the case and step in the address, or the first open case. */
  async navigate() {
    const [, name, step] = location.hash.split("/");
    const wanted = this.cases.find((entry) => entry.case === decodeURIComponent(name ?? ""));
    const isAwaited = name && !wanted && this.isReading;
    const entry = isAwaited ? null : (wanted ?? this.cases.find((each) => !isFinished(each)) ?? this.cases[0]);
    if (!entry) {
      const text = this.isReading ? "The cases are being read…" : "There are no regions for you to answer.";
      this.stage.replaceChildren(h("p.empty", {}, text));
      return;
    }
    this.entry = entry;
    const number = this._allowed(entry, Number(step));
    const address = `#/${encodeURIComponent(entry.case)}/${number}`;
    if (location.hash !== address) history.replaceState(null, "", address);
    if (this.shown === address) return;
    if (this.step && !(await this.step.leave())) {
      history.replaceState(null, "", this.shown);
      return;
    }
    this._close();
    this.shown = address;
    await this._show(entry, number, address);
  }

  _allowed(entry, step) {
    const allowed = STEPS.map(([number]) => number).filter((number) => this._mayShow(entry, number));
    if (allowed.includes(step)) return step;
    if (this.me.role === "coordinator") return 1;
    return entry.experts[0].submitted ? 3 : step ? 1 : 2;
  }

  _mayShow(entry, step) {
    if (this.me.role === "coordinator") return step !== 2;
    return step === 1 || (step === 3) === entry.experts[0].submitted;
  }

  async _show(entry, number, address) {
    this._drawSteps(entry, number);
    this._drawList(entry);
    this.stage.replaceChildren(h("p.empty", {}, "Loading…"));
    try {
      const step = await this._makeStep(entry, number);
      if (this.shown !== address) {
        step.viewer.remove();
        return;
      }
      this.step = step;
      this.stage.replaceChildren(step.viewer.element, step.panel);
      step.start();
      if (number === 2) this._loadAhead(entry, step.scene.channels);
    } catch (error) {
      this.shown = null;
      this.stage.replaceChildren(h("p.empty.error", {}, error.message));
      if (!(error instanceof api.ApiError)) throw error;
    }
  }

  async _makeStep(entry, number) {
    const { me } = this;
    const name = entry.case;
    const details = await api.readCase(name);
    const planes = details.colour ? 3 : details.channels.length;
    const image = (await this._takeAhead(name, planes)) ?? (await api.readImage(name, planes));
    const scene = new Scene(
      details,
      image.map((bytes) => api.typed(bytes, details.kind)),
    );
    const model = await api.readVolume(name, "model");
    if (number === 1) {
      const isExpert = me.role === "expert";
      const route = await api.readVolume(name, isExpert ? "regions" : "route", isExpert ? "uint16" : "uint8");
      return createAssignment({ me, entry, details, scene, model, route });
    }
    if (number === 3) {
      const [fused, result] = await Promise.all([api.readVolume(name, "fused"), api.readResult(name)]);
      const reference = details.has_reference ? await api.readVolume(name, "reference") : null;
      const onReopened = async () => {
        this._close();
        this.shown = null;
        await this._readCases();
        await this.navigate();
      };
      return createFusion({ details, scene, model, fused, reference, result, onReopened });
    }
    const regions = await api.readVolume(name, "regions", "uint16");
    const labels = await api.readVolume(name, "labels");
    const names = details.decides ? ["reading1", "reading2"] : [];
    const readings = await Promise.all(names.map((which) => api.readVolume(name, which)));
    const reload = async (redirect) => {
      this._close();
      this.shown = null;
      await this._readCases();
      redirect?.();
      await this.navigate();
    };
    return new Annotation({
      details,
      scene,
      model,
      regions,
      labels,
      readings,
      onState: (state, reason) => this._showState(state, reason),
      onProgress: (done) => {
        const listed = this.cases.find((each) => each.case === name); // a newer one while cases are being read
        listed.experts[0].done = done;
        this._drawList(listed);
      },
      onSubmitted: async () => {
        await reload(() => {
          const next = this.cases.find((each) => !isFinished(each));
          const [shown, step] = next ? [next.case, 2] : [name, 3];
          history.replaceState(null, "", `#/${encodeURIComponent(shown)}/${step}`);
          toast(`${name} is submitted. ${next ? `Next case: ${next.case}.` : "This was the last case."}`);
        });
      },
      onReplaced: async () => {
        toast("The mask was uploaded.");
        await reload();
      },
    });
  }

  /** Load the image of the next open case while this one, of about the same size, is being answered. */
  _loadAhead(entry, shown) {
    const channels = shown.length;
    if (channels * shown[0].byteLength > AHEAD_BYTES) return;
    const next = this.cases.find((each) => each.case !== entry.case && !isFinished(each));
    if (!next || this.ahead?.name === next.case) return;
    this.ahead = { name: next.case, channels, image: api.readImage(next.case, channels) };
    this.ahead.image.catch(() => {}); // it is loaded again, and the failure told, when the case is opened
  }

  /** The image that was loaded ahead, or null. */
  async _takeAhead(name, channels) {
    const { ahead } = this;
    if (ahead?.name !== name) return null;
    this.ahead = null;
    return ahead.channels === channels ? ahead.image.catch(() => null) : null;
  }

  async _readCases() {
    const { read, cases } = await api.readProgress();
    this.useful = await api.listCases(); // for experts in the order of priority
    this.isReading = read < cases;
    this.progress = this.isReading ? `${read} of ${cases} cases have been read` : "";
    this._sort();
    this.totals = this.me.role === "coordinator" ? await api.readTotals() : null;
  }

  _sort() {
    this.cases = this.byName ? [...this.useful].sort((a, b) => (a.case < b.case ? -1 : 1)) : this.useful;
  }

  _close() {
    this.step?.viewer.remove();
    this.step = null;
    this.state.textContent = "";
    this.banner.hidden = true;
  }

  _showState(state, reason) {
    this.state.textContent = STATES[state];
    this.state.dataset.state = state;
    this.banner.hidden = state !== "lost" && state !== "refused";
    if (state === "lost") {
      this.banner.replaceChildren(
        `Your last changes are not saved yet. ${reason} Keep this page open; saving is retried automatically.`,
      );
    } else if (state === "refused") {
      this.banner.replaceChildren(
        `Not saved. ${reason} `,
        h("button", { on: { click: () => location.reload() } }, "Reload"),
      );
    }
  }

  _drawSteps(entry, current) {
    this.steps.replaceChildren(
      ...STEPS.filter(([number]) => this.me.role === "expert" || number !== 2).map(([number, title], i) => {
        const address = `#/${encodeURIComponent(entry.case)}/${number}`;
        const item = h(
          this._mayShow(entry, number) ? "a" : "span",
          { href: address },
          h("b", {}, String(i + 1)),
          title,
        );
        item.classList.toggle("on", number === current);
        return item;
      }),
    );
  }

  _drawList(current) {
    const finished = this.cases.filter(isFinished).length;
    const cut = cutter(this.cases.map((entry) => entry.case));
    this.list.replaceChildren(
      h("h2", {}, `Cases  ${finished} / ${this.cases.length}`),
      this.progress ? h("p.reading", {}, this.progress) : "",
      this.me.role === "expert" && this.cases.length > 1 ? this._orderButton(current) : "",
      ...this.cases.map((entry) => {
        const item = h("a.case", { href: `#/${encodeURIComponent(entry.case)}` }, ...this._caseLines(entry, cut));
        item.classList.toggle("on", entry.case === current.case);
        return item;
      }),
      ...(this.totals ? [this._totals()] : []),
    );
    this.list.querySelector(".on")?.scrollIntoView({ block: "nearest" });
  }

  _orderButton(current) {
    const change = () => {
      this.byName = !this.byName;
      this._sort();
      this._drawList(current);
    };
    const text = this.byName ? "Sorted by name" : "Sorted by priority";
    return h("button.quiet.order", { title: "Change the order of the cases", on: { click: change } }, `${text} ⇅`);
  }

  _caseLines(entry, cut) {
    const [start, telling] = cut(entry.case);
    const name = h("span.case-name", { title: entry.case }, h("span.start", {}, start), h("span", {}, telling));
    if (this.me.role === "expert") {
      const [{ done, regions, submitted, gain }] = entry.experts;
      const text = submitted ? "Submitted" : `${done} of ${regions}`;
      const state = h(`span.case-state${submitted ? ".done" : ""}`, {}, text);
      const progress = bar(submitted ? 1 : done / Math.max(1, regions));
      const worth = h("span.case-rate", { title: `Your answers are ${expected(gain)}` }, `${priority(gain)} priority`);
      return [name, state, submitted ? "" : worth, progress];
    }
    const asked = entry.experts.filter(({ voxels }) => voxels > 0);
    const submitted = asked.filter((status) => status.submitted).length;
    const shares = h(
      "span.bar",
      {},
      ...entry.experts.map(({ share }, i) => {
        const part = h("span.bar-fill");
        part.style.width = `${entry.rate ? (100 * share) / entry.rate : 0}%`;
        part.style.background = css(expertColour(i + 1));
        return part;
      }),
    );
    const flags = entry.experts.reduce((sum, each) => sum + each.flags, 0);
    const untold = entry.experts.reduce((sum, each) => sum + each.cannot_tell, 0);
    const doubtful = entry.experts.reduce((sum, each) => sum + each.in_doubt, 0);
    const disputed = entry.readings?.disputed ?? 0;
    const undecided = disputed && !entry.adjudication?.submitted;
    const remarks = [
      flags ? `⚑ ${plural(flags, "flag")}` : "",
      untold ? `${untold} marked "cannot tell"` : "",
      doubtful ? `${doubtful} with low confidence` : "",
      disputed ? `${disputed} disputed${undecided ? "" : ", decided"}` : "",
    ].filter(Boolean);
    const state = h(`span.case-state${isFinished(entry) ? ".done" : ""}`, {}, `${submitted}/${asked.length}`);
    return [name, state, h("span.case-rate", {}, [`${percent(entry.rate)} deferred`, ...remarks].join(" · ")), shares];
  }

  _totals() {
    return h(
      "div.totals",
      {},
      h("h2", {}, "Experts"),
      h(
        "table",
        {},
        h(
          "tbody",
          {},
          ...this.totals.experts.map((row, i) =>
            h(
              "tr",
              { title: `${count(row.answered_voxels)} of ${count(row.voxels)} voxels answered, ${minutes(row.minutes)}` },
              nameCell(row.expert, css(expertColour(i + 1))),
              h("td.number", {}, `${row.submitted}/${row.cases}`),
              h("td.number", {}, minutes(row.minutes)),
            ),
          ),
        ),
      ),
    );
  }

  _onKey(event) {
    if (document.querySelector("dialog[open]") || event.altKey) return;
    const isTyping = event.target.matches?.("select, textarea, input:not([type=checkbox]):not([type=range])");
    // What was focused with the Tab key keeps its keys.
    const isPressing =
      ["Enter", " "].includes(event.key) && event.target.matches?.(":is(button, a, summary):focus-visible");
    const isTicking = event.key === " " && event.target.matches?.("input[type=checkbox]");
    const isSliding = /^(Arrow|Page)/.test(event.key) && event.target.matches?.("input[type=range]");
    if (isTyping || isPressing || isTicking || isSliding) return;
    if (event.key === "?") {
      showKeys();
      event.preventDefault();
    } else if (this.step?.onKey(event)) {
      event.preventDefault();
      document.activeElement?.blur?.();
    }
  }
}

const isFinished = ({ experts, adjudication }) =>
  experts.every(({ voxels, submitted }) => submitted || voxels === 0) && (adjudication?.submitted ?? true);

async function start() {
  const secret = location.hash.match(/^#enter=(.+)$/)?.[1];
  try {
    if (secret) {
      await api.enter(secret);
      history.replaceState(null, "", location.pathname);
    }
    const me = await api.whoAmI();
    setGainUnit(me.gain_unit);
    await new App(me).start();
  } catch (error) {
    document.body.replaceChildren(h("p.empty", {}, error.message));
    if (!(error instanceof api.ApiError)) throw error;
  }
}

start();
