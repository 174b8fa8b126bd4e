// The app around the screens: session, reviewer, queue picker, progress, keys, help.

import { getClusters, getQueue, getSession, getStatistics } from "./api.js";
import { ClusterScreen } from "./clusters.js";
import { PairScreen } from "./pairs.js";
import { Pace, Queue } from "./queue.js";
import { Saver, banner, hideBanner, say } from "./saving.js";
import { byId, element, onClick } from "./words.js";

const SCREENS = ["pair", "cluster", "summary"];
const SET_NAMES = { listed: "Top match of each query", sample: "Drawn sample", clusters: "Clusters", open: "Open pairs" };

const app = {
  session: null,
  reviewer: "",
  queue: new Queue([], new Map(), true),
  saver: new Saver(),
  pace: new Pace(),
  screen: null,
  show,
  decided,
  finished,
};
let pairs;
let clusters;

function show(screen) {
  app.screen = screen;
  for (const other of SCREENS) byId(other).hidden = other !== screen;
  if (screen !== "pair") pairs.leave();
  if (screen !== "cluster") clusters.leave();
}

/** A verdict was acknowledged (null: taken back); other tabs hear of it. */
function decided(id, verdict, undone = false) {
  app.queue.mark(id, verdict);
  if (verdict && !undone) app.pace.note();
  tabs?.postMessage({ folder: app.session.folder ?? app.session.title, reviewer: app.reviewer, id, verdict });
  progress();
}

const tabs = "BroadcastChannel" in window ? new BroadcastChannel("auscult-review") : null;
tabs?.addEventListener("message", ({ data }) => {
  if (!app.session || data.reviewer !== app.reviewer || data.folder !== (app.session.folder ?? app.session.title)) return;
  app.queue.mark(data.id, data.verdict);
  progress();
});

function progress() {
  const { queue } = app;
  const total = queue.all.length;
  byId("progress").textContent = `${queue.count} of ${total} decided`;
  byId("bar").max = Math.max(total, 1);
  byId("bar").value = queue.count;
  byId("pace").textContent = app.pace.words(total - queue.count);
}

/** The end of the queue: what was found, and what to do next. */
function finished() {
  const { queue, session } = app;
  const left = queue.all.length - queue.count;
  const noun = app.set === "clusters" ? "clusters" : "pairs";
  show("summary");
  byId("summary-title").textContent = left ? "The end of this queue" : queue.all.length ? `All ${queue.all.length} ${noun} are decided` : `There are no ${noun} here`;
  byId("summary-words").textContent = queue.all.length ? `${app.reviewer} decided ${queue.count} of ${queue.all.length} ${noun} of “${SET_NAMES[app.set]}”${left ? `; ${left} are left` : ""}.` : "Choose another queue above.";
  const names = { all_one: "all one", split: "split", not_duplicates: "not duplicates" };
  byId("summary-counts").replaceChildren(
    ...[...queue.counts()].sort((a, b) => b[1] - a[1]).map(([verdict, count]) => element("li", {}, element("b", { text: count }), ` ${names[verdict] ?? verdict}`)),
  );
  const folder = session.folder ?? session.title;
  const next = [];
  if (session.sample && app.set === "listed") next.push(["Go through the drawn sample, too (above, Queue): flagged pairs alone cannot give a rate."]);
  const second = element("span", { text: "Have a second person decide under another name; their agreement is part of the result." });
  if (session.kind === "audit") next.push([second]);
  next.push(["Stop the server with Ctrl+C, then write the report with these verdicts: ", element("code", { text: `auscult report ${folder}` })]);
  byId("summary-next").replaceChildren(...next.map((parts) => element("li", {}, ...parts)));
  byId("summary").focus();
  if (session.kind === "audit" && !session.blind) withoutSecond(second.parentElement);
}

/** Who reads these results with others needs no advice to find them. */
async function withoutSecond(advice) {
  const { reviewers } = await getStatistics().catch(() => ({}));
  if (Object.keys(reviewers ?? {}).some((name) => name !== app.reviewer)) advice.remove();
}

/** Fetch the queue chosen above and open its first undecided pair. */
async function openQueue() {
  const [set, order] = [byId("set").value, byId("order").value];
  const undecided = byId("undecided").checked;
  for (const [key, value] of [["set", set], ["order", order], ["undecided", undecided]]) sessionStorage.setItem(`auscult.${key}`, value);
  app.set = set;
  byId("order-label").hidden = set === "sample" || set === "clusters";
  const ordered = byId("order-label").hidden ? "" : `, ${byId("order").selectedOptions[0]?.textContent}`;
  byId("queue-name").textContent = `${app.reviewer} · ${SET_NAMES[set]}${ordered}`;
  byId("reviewer-name").textContent = app.reviewer;
  hideBanner();
  pairs.reset();
  try {
    if (set === "clusters") {
      const rows = (await getClusters(app.reviewer)).clusters;
      const done = new Map(rows.filter((row) => row.decision).map((row) => [row.cluster_key, row.decision]));
      const times = new Map(rows.filter((row) => row.decision && row.decided_at).map((row) => [row.cluster_key, row.decided_at]));
      app.queue = new Queue(rows.map((row) => row.cluster_key), done, undecided, times);
    } else {
      const answer = await getQueue(app.reviewer, order, set === "sample" ? "sample" : "listed");
      app.queue = new Queue(answer.pairs, new Map(Object.entries(answer.decided)), undecided, new Map(Object.entries(answer.decided_at ?? {})));
    }
  } catch (error) {
    banner(`The queue could not be fetched. ${error.message}`, [["Retry (R)", openQueue]]);
    return;
  }
  app.pace = new Pace();
  progress();
  if (app.queue.place < 0) return finished();
  show(set === "clusters" ? "cluster" : "pair");
  await (set === "clusters" ? clusters : pairs).open();
}

function fillPicker() {
  const { session } = app;
  const sets = session.kind === "dedup" ? [...(session.clusters || !session.counts?.pairs ? ["clusters"] : []), ...(session.counts?.pairs ? ["open"] : [])] : ["listed", ...(session.sample ? ["sample"] : [])];
  byId("set").replaceChildren(...sets.map((set) => element("option", { value: set, text: SET_NAMES[set] })));
  const kept = sessionStorage.getItem("auscult.set");
  byId("set").value = sets.includes(kept) ? kept : sets[0];
  for (const option of [...byId("order").options]) if (session.orders && !session.orders.includes(option.value)) option.remove();
  byId("order").value = sessionStorage.getItem("auscult.order") ?? session.order ?? "score";
  if (byId("order").selectedIndex < 0) byId("order").selectedIndex = 0;
  byId("undecided").checked = (sessionStorage.getItem("auscult.undecided") ?? String(session.unreviewed ?? true)) === "true";
}

/** Ask for the reviewer's name; resolves when there is one. */
function askName() {
  const dialog = byId("naming");
  byId("name").value = app.reviewer;
  dialog.returnValue = "";
  dialog.showModal();
  byId("name").select();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const name = byId("name").value.trim();
        if (dialog.returnValue !== "use" || !name) return resolve(app.reviewer ? false : askName());
        const changed = name !== app.reviewer;
        app.reviewer = name;
        localStorage.setItem(nameKey(), name);
        resolve(changed);
      },
      { once: true },
    );
  });
}

// A name chosen here holds as long as the server is started under the same one.
const nameKey = () => `auscult.reviewer.${app.session.reviewer ?? ""}`;

function pressed(event) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  const typing = target.matches?.("input, textarea, select");
  if (event.key === "Escape") return escape(typing);
  if (typing) return;
  const screen = app.screen === "pair" ? pairs : app.screen === "cluster" ? clusters : null;
  if (event.key === "Tab") {
    const atPlayer = target === document.body || byId("player").contains(target);
    if (app.screen !== "pair" || event.shiftKey || !atPlayer) return;
    event.preventDefault();
    if (!event.repeat) pairs.tab();
    return;
  }
  if ([" ", "Enter"].includes(event.key) && target.closest?.("button, summary, a")) return; // it presses that
  // A keyboard of another script still has its keys where the letters are.
  const name = /^[^\x00-\x7f]$/.test(event.key) && event.code.startsWith("Key") ? event.code.slice(3).toLowerCase() : event.key.toLowerCase();
  if (name === "?") byId("help").showModal();
  else if (name === "r" && !byId("banner").hidden) byId("banner-buttons").firstElementChild?.click();
  else if (name === "u" && app.screen === "summary") (app.set === "clusters" ? clusters : pairs).undo();
  else if (!screen?.key(event, name)) return;
  event.preventDefault();
}

/** Out of a field or control, back to the player; from there to the first control, so that Tab can go on. */
function escape(typing) {
  const active = document.activeElement;
  if (byId("queue").open) byId("queue").open = false;
  if (!typing && (active === document.body || byId("player").contains(active))) {
    byId(app.screen === "pair" ? "play-query" : "help-button").focus();
  } else {
    active.blur();
  }
}

async function start() {
  try {
    app.session = await getSession();
  } catch (error) {
    banner(`The review could not be opened. ${error.message}`, [["Retry (R)", () => location.reload()]]);
    return;
  }
  const { session } = app;
  byId("title").textContent = session.title;
  document.title = `${session.title} · auscult review`;
  app.reviewer = (session.reviewer_fixed ? null : localStorage.getItem(nameKey())) ?? session.reviewer ?? "";
  byId("reviewer").disabled = Boolean(session.reviewer_fixed);
  byId("reviewer-change").hidden = Boolean(session.reviewer_fixed);
  if (!app.reviewer) await askName();
  pairs = new PairScreen(app);
  clusters = new ClusterScreen(app);
  fillPicker();
  for (const id of ["set", "order", "undecided"]) {
    byId(id).addEventListener("change", (event) => {
      event.target.blur(); // so that keys decide again
      byId("queue").open = false;
      if (!app.saver.busy) openQueue();
    });
  }
  onClick(byId("reviewer"), async () => {
    byId("queue").open = false;
    if (!app.saver.busy && (await askName())) {
      await openQueue();
      say(`Verdicts are now stored for ${app.reviewer}.`);
    }
  });
  onClick(byId("help-button"), () => byId("help").showModal());
  onClick(byId("summary-again"), () => {
    byId("undecided").checked = false;
    openQueue();
  });
  document.addEventListener("keydown", pressed);
  document.addEventListener("click", (event) => {
    if (!byId("queue").contains(event.target)) byId("queue").open = false;
  });
  await openQueue();
}

start();
