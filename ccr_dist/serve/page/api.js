// What the page asks the server. Addresses are relative: the page may lie below a path of another server.

export class Failure extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function asked(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server cannot be reached. Perhaps it was ended.");
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  let detail = "";
  try { detail = (await response.json()).detail; } catch { /* no JSON: the status says all there is */ }
  throw new Failure(response.status, typeof detail === "string" && detail ? detail : `The server answers with status ${response.status}.`);
}

const words = (values) => new URLSearchParams(Object.entries(values)
  .flatMap(([name, value]) => (Array.isArray(value) ? value : [value]).map((each) => [name, each]))
  .filter(([, value]) => value !== null && value !== undefined && value !== ""));

export const info = () => asked("api/info");
export const labels = (index) => asked(`api/labels?${words({ index })}`);
export const searchText = (text, { lang, where, via, k, index, signal }) =>
  asked(`api/search?${words({ text, lang, where, via_english: via, k, index })}`, { signal });
export const searchPicture = (file, { where, k, index, signal }) =>
  asked(`api/search?${words({ where, k, index })}`, { method: "POST", body: file, headers: { "content-type": file.type || "application/octet-stream" }, signal });
export const item = (index, number, signal) => asked(`api/items/${number}?${words({ index })}`, { signal });
export const similar = (index, number, k, signal) => asked(`api/items/${number}/similar?${words({ index, k })}`, { signal });
export const session = (token) =>
  asked("api/session", { method: "POST", body: JSON.stringify({ token }), headers: { "content-type": "application/json" } });

let started = "";
export const startedAt = (value) => { started = value; };
// `v`: the pictures of another start of the server are others.
export const picture = (index, number, size = "small") => `api/items/${number}/picture?${words({ index, size, v: started })}`;
export const original = (index, number) => `api/items/${number}/picture?${words({ index, full: 1, v: started })}`;
