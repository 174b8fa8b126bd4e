// What the page asks of the server. Every failure is an ApiError whose message can be shown as it is.

const TIMEOUT_MS = 20_000;

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { ...options, signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
  } catch {
    throw new ApiError("The server does not answer. Is “auscult review” still running?", 0);
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) {
    throw new ApiError(body?.error ?? `The server answered ${response.status} ${response.statusText}.`, response.status);
  }
  if (body === null) throw new ApiError("The server's answer was cut off.", 0); // killed while it answered
  return body;
}

const post = (url, body) =>
  request(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

const asked = (parameters) => new URLSearchParams(parameters).toString();

export const getSession = () => request("/api/session");
// All pairs, decided ones too: what counts as "undecided only" is settled here, so that one can go back to a decided pair.
export const getQueue = (reviewer, order, set) => request(`/api/queue?${asked({ reviewer, order, set, unreviewed: 0 })}`);
export const getPair = (id, reviewer) => request(`/api/pairs/${encodeURIComponent(id)}?${asked({ reviewer })}`);
export const getClusters = (reviewer) => request(`/api/clusters?${asked({ reviewer })}`);
export const getCluster = (key, reviewer) => request(`/api/clusters/${encodeURIComponent(key)}?${asked({ reviewer })}`);
export const getDifference = (pair) => request(pair.difference_url ?? `/api/pairs/${encodeURIComponent(pair.pair_id)}/difference`);
export const getStatistics = () => request("/api/stats");
export const postVerdict = (event) => post("/api/verdicts", event);
export const postCluster = (event) => post("/api/clusters", event);

/** Random id of an event: a request repeated with the same id is stored once. */
export function eventId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // not on localhost and not https: no randomUUID there
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

export function spectrogramUrl(side, { scale, start, end, width }) {
  const base = side.spectrogram ?? side.audio.replace(/audio\.wav$/, "spectrogram.png");
  return `${base}?${asked({ scale, start: start.toFixed(3), end: end.toFixed(3), width })}`;
}

