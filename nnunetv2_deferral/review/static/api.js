/** Requests to the server of this page. Paths are relative, because a proxy may serve the page below another one. */

export class ApiError extends Error {
  /**
   * @param {string} message   shown to the user
   * @param {boolean} refused  whether a retry would fail again
   */
  constructor(message, refused) {
    super(message);
    this.refused = refused;
  }
}

const TEMPORARY = new Set([502, 503, 504, 507]);
let person = "";

/** The most `flags` in a case, and the most characters of a `comment`; known once {@link whoAmI} has answered. */
export let limits = null;

async function request(path, options = {}) {
  let response;
  try {
    const headers = { "X-Review-Person": encodeURIComponent(person), ...options.headers };
    response = await fetch(path, { credentials: "same-origin", ...options, headers });
  } catch {
    throw new ApiError("The review server cannot be reached.", false);
  }
  if (response.ok) return response;
  const { reason } = await response.json().catch(() => ({}));
  throw new ApiError(reason ?? `The server answered ${response.status}.`, !TEMPORARY.has(response.status));
}

const json = async (path, options) => (await request(path, options)).json();
const post = (path, content) =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });
const casePath = (name, rest = "") => `api/cases/${encodeURIComponent(name)}${rest}`;

/** Exchange the secret of a link for a session. */
export const enter = (secret) => post("api/enter", { secret });

/** The person this browser is signed in as; all further requests are made in this name. */
export async function whoAmI() {
  const me = await json("api/me");
  person = me.name;
  limits = me.limits;
  return me;
}

export const listCases = () => json("api/cases");
export const readProgress = () => json("api/progress");
export const readTotals = () => json("api/totals");
export const readCase = (name) => json(casePath(name));
export const readResult = (name) => json(casePath(name, "/result"));
export const save = (name, body) => post(casePath(name, "/save"), body);
export const submit = (name, revision) => post(casePath(name, "/submit"), { revision });
export const reopen = (name, expert, reason) => post(casePath(name, "/reopen"), { expert, reason });
export const downloadPath = (name, what) => casePath(name, `/download/${what}`);

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };

const readBytes = async (name, which) => (await request(casePath(name, `/volumes/${which}`))).arrayBuffer();

/** A volume as a typed array. */
export const readVolume = async (name, which, kind = "uint8") => typed(await readBytes(name, which), kind);

/** The channels of an image, as bytes. @returns {Promise<ArrayBuffer[]>} */
export const readImage = (name, channels) =>
  Promise.all(Array.from({ length: channels }, (_, i) => readBytes(name, `image${i}`)));

/** Bytes as a typed array. */
export const typed = (bytes, kind) => new KINDS[kind](bytes);

/** Upload a mask file drawn in another program. */
export async function upload(name, revision, file) {
  const content = await file.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const hex = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const query = new URLSearchParams({ revision, key: crypto.randomUUID(), name: file.name });
  return json(casePath(name, `/upload?${query}`), {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", "X-Content-SHA256": hex },
    body: content,
  });
}
