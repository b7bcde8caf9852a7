/** Creation of elements, and formatting of numbers. */

/**
 * @param {string} tag        tag name followed by classes: "div.panel.wide"
 * @param {object} [options]  properties; `on` has event listeners, `data` and `aria` have attributes
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElement}
 */
export function h(tag, options = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.classList.add(...classes);
  const { on = {}, data = {}, aria = {}, ...properties } = options;
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  Object.assign(element.dataset, data);
  for (const [key, value] of Object.entries(aria)) element.setAttribute(`aria-${key}`, value);
  Object.assign(element, properties);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A small coloured square. */
export function swatch(colour) {
  const element = h("span.swatch");
  element.style.background = colour;
  return element;
}

/** Characters at the end of somebody's name that are always shown. */
const NAME_END = 8;
/** The cell of a table with somebody's name and colour; one that does not fit is cut before its end. */
export const nameCell = (name, colour) =>
  h(
    "td.name",
    { title: name },
    h("span.cut", {}, swatch(colour), h("span.start", {}, name.slice(0, -NAME_END)), h("span", {}, name.slice(-NAME_END))),
  );

/** A progress bar filled to a share between 0 and 1. */
export function bar(share, colour) {
  const inner = h("span.bar-fill");
  inner.style.width = `${Math.round(100 * share)}%`;
  if (colour) inner.style.background = colour;
  return h("span.bar", {}, inner);
}

/** A share with one or two decimals; below 0.01 % with two significant digits. */
export function percent(share) {
  const value = 100 * share;
  const decimals = value > 0 && value < 0.01 ? 1 - Math.floor(Math.log10(value)) : value < 9.95 ? 2 : 1;
  return `${value.toFixed(decimals)} %`;
}
let gainUnit = "Dice";
/** Set what gains are in: Dice, or a score that ranks regions but does not say how much is gained. */
export const setGainUnit = (unit) => {
  gainUnit = unit;
};
/** An expected gain with two significant digits. */
const digits = (gain) => `${gain < 0.001 ? "less than 0.001" : Number(gain.toPrecision(2))}`;
export const expected = (gain) =>
  gainUnit === "Dice" ? `expected to raise Dice by ${digits(gain)}` : `ranked by a score of ${digits(gain)}`;
/** The priority of a gain: high from 0.01, medium from 0.001. */
export const priority = (gain) => (gain >= 0.01 ? "high" : gain >= 0.001 ? "medium" : "low");
export const count = (number) => number.toLocaleString("en-US");
export const minutes = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} min`);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
