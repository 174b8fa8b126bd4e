// Where two sounds meet: one time axis in the query's seconds, and the map between the two clocks.

/** The span of most evidence, or null. */
export function strongestSpan(pair) {
  const spans = pair.spans ?? [];
  if (!spans.length) return null;
  if (Number.isInteger(pair.strongest) && spans[pair.strongest]) return spans[pair.strongest];
  if (pair.lag_s === null || pair.lag_s === undefined) return spans[0];
  const miss = (span) => Math.abs(span.query_start_s - span.reference_start_s - pair.lag_s);
  return spans.reduce((best, span) => (miss(span) < miss(best) - 1e-6 ? span : best));
}

/** What the axis needs to know of a pair; all times in seconds. */
export function alignmentOf(pair) {
  for (const role of ["query", "reference"]) {
    // Of a file that is gone nothing may be known but its spans; the picture's place stays empty.
    pair[role].duration_s ??= Math.max(1, ...(pair.spans ?? []).map((span) => span[`${role}_end_s`]));
  }
  const strongest = strongestSpan(pair);
  const tempo = pair.tempo > 0 ? pair.tempo : 1;
  // The pictures have one scale, so at another tempo they can meet at one moment only: where the strongest span begins.
  const shift = strongest ? strongest.query_start_s - strongest.reference_start_s : (pair.lag_s ?? 0);
  const query = [0, pair.query.duration_s];
  const reference = [shift, shift + pair.reference.duration_s];
  return { pair, spans: pair.spans ?? [], strongest, tempo, shift, full: [Math.min(query[0], reference[0]), Math.max(query[1], reference[1])] };
}

const SHORT_S = 30;

/** The stretch shown first: everything when it is short, else the query, else what surrounds the strongest span. */
export function firstView({ pair, strongest, full }) {
  if (full[1] - full[0] <= SHORT_S) return full;
  if (pair.query.duration_s <= SHORT_S) {
    const margin = 0.05 * pair.query.duration_s;
    return within([-margin, pair.query.duration_s + margin], full);
  }
  const middle = strongest ? (strongest.query_start_s + strongest.query_end_s) / 2 : SHORT_S / 2;
  const half = Math.max(SHORT_S / 2, strongest ? 0.6 * (strongest.query_end_s - strongest.query_start_s) : 0);
  return within([middle - half, middle + half], full);
}

/** `view`, moved and cut so that it lies within `full`. */
export function within([start, end], full) {
  const length = Math.min(end - start, full[1] - full[0]);
  const first = Math.min(Math.max(start, full[0]), full[1] - length);
  return [first, first + length];
}

/** Whether a moment of one side lies in a span. */
export const inSpan = (span, role, time) => Boolean(span) && span[`${role}_start_s`] <= time && time <= span[`${role}_end_s`];

/** The span that a moment of one side lies in, the strongest first; outside of all, null. */
export function spanAt({ spans, strongest }, role, time) {
  return inSpan(strongest, role, time) ? strongest : (spans.find((span) => inSpan(span, role, time)) ?? null);
}

/** The moment of the other side that matches `time` of side `role`: by the clock of the span that is looped, else of the one it lies in. */
export function counterpart(alignment, role, time, looped = null) {
  const span = looped ?? spanAt(alignment, role, time) ?? alignment.strongest; // outside of all, the strongest's clock holds
  const [q, r] = span ? [span.query_start_s, span.reference_start_s] : [alignment.shift, 0];
  return role === "query" ? r + (time - q) * alignment.tempo : q + (time - r) / alignment.tempo;
}

/** Clip seconds of a side on the axis, and back. */
export const toAxis = (alignment, role, time) => (role === "query" ? time : time + alignment.shift);
export const fromAxis = (alignment, role, time) => (role === "query" ? time : time - alignment.shift);
