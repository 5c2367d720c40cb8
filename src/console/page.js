// The console: asks the API every two seconds and shows what it says.
//
// Everything shown goes through `h`, which makes text of it: names and labels come from outside.

const LOOK_MS = 2000; // Between two looks; larger: numbers are old, smaller: work for the process that is looked at.
const ROWS_MAX = 100; // Targets shown of a job; the filter finds the others.
const LINES_MAX = 500; // Samples that the tap keeps.
const SOON_S = 86400; // A loss that is nearer is told above everything else.
const TOKEN = "strata-token";

const seen = { status: null, relays: [], targets: { targets: [], dropped: [] }, lost: null, locked: false };
let token = sessionStorage.getItem(TOKEN) ?? "";
let afterToken = null;
let tapping = null;
let skew = 0; // What the clock here is behind that of Strata, ms.

const at = (id) => document.getElementById(id);
const now = () => Date.now() + skew;

// Asking.

async function ask(path, options = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { cache: "no-store", ...options, headers: { ...headers, ...options.headers } });
  const said = Date.parse(answer.headers.get("date"));
  if (said) skew = Math.abs(said - Date.now()) > 2000 ? said - Date.now() : 0;
  if (answer.ok) return answer;
  const failure = await answer.json().catch(() => ({}));
  const text = failure.error ? failure.error + (failure.fix ? `: ${failure.fix}` : "") : `the answer was ${answer.status}`;
  throw Object.assign(new Error(text), { status: answer.status });
}

const read = async (path) => (await ask(path)).json();

async function look() {
  try {
    const [status, relays, targets] = await Promise.all([read("api/v1/status"), read("api/v1/relays"), read("api/v1/targets")]);
    Object.assign(seen, { status, relays: relays.relays, targets, lost: null, locked: false });
  } catch (error) {
    seen.locked = error.status === 401;
    if (seen.locked && token) forget();
    seen.lost ??= { at: now() };
    seen.lost.why = error.status ? error.message : "Strata does not answer";
  }
  show();
}

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, LOOK_MS);
}

// What is said of a change; it stays until the next one.
function note(text) {
  at("note").hidden = !text;
  at("note").textContent = text;
}

async function change(path, name) {
  if (!token) return askToken(() => change(path, name));
  try {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body: "{}" };
    const changed = await (await ask(path, options)).json();
    seen.relays = seen.relays.map((relay) => (relay.name === name ? changed.relay : relay));
    note(`${name}: ${changed.note}.`);
  } catch (error) {
    if (error.status === 401) forget();
    note(`${name}: ${error.status === 401 ? "this token is not the one" : error.message}.`);
  }
  show();
}

function askToken(then) {
  afterToken = then;
  at("ask-token").value = "";
  at("ask").showModal();
}

function forget() {
  token = "";
  sessionStorage.removeItem(TOKEN);
}

// Making and mending the page.

// An element; `props` are its attributes, null and false leave one out.
function h(name, props, ...inner) {
  const svg = name === "svg" || name === "path";
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value != null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...inner.flat(9).filter((part) => part != null && part !== false && part !== ""));
  return made;
}

// Makes `old` like `made` and keeps what is the same, so that focus, selection and what a person opened stay.
function mend(old, made) {
  const key = (node) => node.nodeName + (node.dataset?.key ?? "");
  if (key(old) !== key(made)) return old.replaceWith(made);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (name !== "open" && !made.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of made.attributes) if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  fill(old, [...made.childNodes]);
}

function fill(parent, nodes) {
  const old = [...parent.childNodes];
  const made = nodes.flat(9).filter(Boolean).map((node) => (node.nodeType ? node : document.createTextNode(node)));
  made.forEach((node, k) => (k < old.length ? mend(old[k], node) : parent.append(node)));
  old.slice(made.length).forEach((node) => node.remove());
}

// A table that keeps its roles where the style shows it as cards.
function table(label, columns, rows) {
  const head = columns.map(([name, kind]) => h("th", { class: kind, role: "columnheader", scope: "col" }, name));
  return h("table", { role: "table", "aria-label": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, rows));
}

const row = (props, ...cells) => h("tr", { role: "row", ...props }, cells);
const cell = (label, kind, ...inner) => h("td", { role: "cell", class: kind, "data-label": label }, inner);
const empty = (title, ...text) => h("p", { class: "empty" }, h("b", null, title), " ", text);
const code = (text) => h("code", null, text);

// The last minutes as a line: five minutes wide, from zero up to the highest.
function plot(points, what, most, width = 150) {
  const high = Math.max(1, ...points);
  const spots = points.map((point, k) => `${width - points.length + k + 1},${(20 - (point / high) * 19).toFixed(1)}`);
  const line = spots.length > 1 ? `M${spots.join("L")}` : "";
  const area = line && `${line}V20H${width - points.length + 1}Z`;
  const label = `${what} in the last minutes, at most ${most(Math.max(0, ...points))}`;
  return h("svg", { class: "plot", viewBox: `0 0 ${width} 20`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("path", { class: "area", d: area }), h("path", { d: line }));
}

// Numbers as a person says them.

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const k = n < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(n) / 10));
  return `${(n / 1024 ** k).toFixed(k ? 1 : 0)} ${units[k]}`;
}

function count(n) {
  if (n < 1000) return n.toFixed(n < 10 && n % 1 ? 1 : 0);
  const k = n < 1e6 ? 1 : n < 1e9 ? 2 : 3;
  return `${(n / 1000 ** k).toFixed(1)}${"kMG"[k - 1]}`;
}

const whole = (n) => n.toLocaleString("en");
const perSecond = (n) => `${count(n)}/s`;
const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d`;
}

const seconds = (s) => (s < 10 ? `${s.toFixed(1)} s` : span(s));
const ago = (ms) => `${span((now() - ms) / 1000)} ago`;
const clock = (ms) => new Date(ms).toISOString().slice(11, 19);
const minute = (ms) => `${new Date(ms).toISOString().slice(0, 16).replace("T", " ")} UTC`;
const sentence = (text) => text[0].toUpperCase() + text.slice(1);

// States: always a word, with a colour.

const KINDS = {
  running: "good", up: "good", ready: "good", retrying: "warn", starting: "warn", unknown: "warn", paused: "info",
  stopped: "quiet", held: "bad", failed: "bad", down: "bad", "not ready": "bad", "no answer": "bad",
};
const urgency = (left) => (left < 3600 ? "bad" : left < SOON_S ? "warn" : "quiet");
const state = (word) => h("span", { class: `state ${KINDS[word] ?? "quiet"}` }, word);

// The parts of the page.

function show() {
  at("token").textContent = token ? "Forget token" : "Token…";
  const { status } = seen;
  fill(at("head"), head(status));
  const urgent = attention(status);
  at("attention").hidden = !urgent.length;
  fill(at("attention"), urgent);
  document.querySelector("main").classList.toggle("blank", !status);
  if (!status) return;
  fill(at("stream"), figures(status));
  fill(at("relays"), [relays(seen.relays)]);
  fill(at("dead"), [dead(status, seen.relays)]);
  fill(at("targets"), targets());
  const names = ["", ...seen.relays.map((relay) => relay.name)];
  fill(at("tap").elements.relay, names.map((name) => h("option", { value: name }, name || "the stream")));
}

function head(status) {
  const when = seen.lost && !seen.locked ? `no answer since ${clock(seen.lost.at)} UTC` : `${clock(now())} UTC`;
  const word = seen.locked ? "locked" : seen.lost ? "no answer" : !status ? "asking" : status.is_ready ? "ready" : "not ready";
  if (!status) return [state(word), h("span", { class: "quiet" }, when)];
  document.title = word === "ready" ? "Strata" : `${sentence(word)} · Strata`;
  return [
    state(word), h("span", { class: "quiet" }, status.version), h("span", { class: "quiet" }, `up ${span(status.uptime_seconds)}`),
    h("span", { class: "quiet", title: status.durability.promise }, status.durability.acknowledged_means),
    h("span", { class: seen.lost ? "bad" : "quiet" }, when),
  ];
}

// What a person should know first, the worst above.
function attention(status) {
  const found = [];
  const say = (kind, word, ...text) => found.push(h("p", null, h("span", { class: `state ${kind}` }, word), h("span", { class: "wrap" }, text)));
  if (seen.locked) say("warn", "locked", "Reading needs the token, as this listener is not on loopback. ", h("button", { type: "button", "data-do": "token" }, "Give it…"));
  else if (seen.lost) say("bad", "no answer", sentence(seen.lost.why), status ? "; these are the last numbers." : ".");
  if (!status) return found;
  for (const check of status.ready.filter((check) => !check.ok)) say("bad", "not ready", h("b", null, check.name), ": ", check.seen);
  if (status.nats.reason) say("bad", "down", "The NATS server: ", status.nats.reason);
  for (const relay of seen.relays) {
    const left = relay.retention.left_seconds;
    const name = h("b", null, relay.name);
    if (left != null && left < SOON_S) say(urgency(left), left < 1 ? "losing" : "at risk", name, " ", relay.retention.text);
    else if (["held", "failed"].includes(relay.state)) say("bad", relay.state, name, " ", relay.error?.text ?? "");
  }
  const { dropped_samples: dropped, targets_down: down } = status.collection;
  if (dropped) say("bad", "dropped", many(dropped, "sample"), " before they reached the stream, since the start");
  if (down) say("warn", "down", many(down, "target does", "targets do"), " not answer");
  return found;
}

function figures({ stream, collection, dead_letters, nats }) {
  const figure = (name, value, ...rest) => h("div", null, h("dl", null, h("dt", null, name), h("dd", { class: "value" }, value), h("dd", null, rest)));
  const known = collection.targets_up + collection.targets_down + collection.targets_unknown;
  const samples = figure("Samples in", [count(collection.samples_per_second), h("small", null, " per second")],
    plot(collection.history.scraped_samples, "Samples per second", perSecond));
  const up = figure("Targets up", [whole(collection.targets_up), h("small", null, ` of ${whole(known)}`)],
    h("small", null, collection.queue_samples ? `${count(collection.queue_samples)} samples wait in memory` : "Nothing waits in memory"));
  if (!stream) {
    return [samples, figure("Stream", nats.state, h("small", null, "The NATS server has not said yet what is in it.")), figure("Window", "–"), up];
  }
  const fill = h("meter", { min: 0, max: 1, low: 0.8, high: 0.92, optimum: 0, value: stream.fill.toFixed(4), "aria-label": "Fill of the stream" });
  const window = stream.first_ms == null ? "Nothing is kept yet." : `${minute(stream.first_ms)} to ${clock(stream.last_ms)}`;
  return [
    samples,
    figure("Stream", [bytes(stream.bytes), h("small", null, ` of ${bytes(stream.max_bytes)}`)], fill,
      h("small", null, `${(stream.fill * 100).toFixed(1)} % full, ${bytes(stream.in_bytes_per_second)}/s come in`)),
    figure("Window", span(stream.window_seconds), h("small", null, window)),
    up,
  ];
}

function relays(all) {
  if (!all.length) {
    return h("div", { class: "sheet" }, empty("No relay is configured.", "Samples wait in the stream and go nowhere. Add one below ", code("relays:"),
      " in the configuration, try it with ", code("strata check"), ", then reload."));
  }
  const columns = [["Relay"], ["State"], ["Lag", "n"], ["Delivered", "n"], ["Waiting", "n"], ["Retention left"], ["Filtered", "n"], ["Rejected", "n"],
    ["Lost", "n"], [""]];
  return h("div", { class: "sheet" }, table("Relays", columns, all.map(relay)));
}

function relay(relay) {
  const { name, lag, rates, totals, retention, pause, history } = relay;
  const left = retention.left_seconds;
  const kind = left != null ? urgency(left) : lag.catch_up_seconds != null ? "good" : "quiet";
  const [said, limit] = left != null || lag.catch_up_seconds != null ? retention.text.split(/ \((.*)\)/) : ["keeps all"];
  const places = relay.namespaces?.length ? ` of the namespaces ${relay.namespaces.join(", ")}` : "";
  const takes = (relay.from.length ? `jobs ${relay.from.join(", ")}` : "all jobs") + places;
  const by = (counts) => Object.entries(counts).filter(([, n]) => n).map(([why, n]) => `${why} ${count(n)}`).join(", ");
  const total = (label, n, why, bad) => h("td", { role: "cell", class: `n ${n && bad ? bad : ""}`, "data-label": label, title: why || null }, count(n));
  const button = h("button", { type: "button", "data-do": pause ? "resume" : "pause", "data-name": name, "aria-label": `${pause ? "Resume" : "Pause"} ${name}` },
    pause ? "Resume" : "Pause");
  return [
    row({ "data-key": name },
      cell(null, "wide", h("b", { class: "wrap" }, name), h("small", { class: "wrap" }, [...new Set([relay.sink, relay.encoder, takes])].join(" · "))),
      cell("State", "", state(relay.state)),
      cell("Lag", "n plotted", seconds(lag.seconds), plot(history.lag_seconds, "Lag", seconds)),
      cell("Delivered", "n plotted", perSecond(rates.delivered_samples), plot(history.delivered_samples, "Delivered samples per second", perSecond)),
      cell("Waiting", "n", bytes(lag.bytes), h("small", null, many(lag.samples, "sample"))),
      cell("Retention left", `left ${kind}`, said, limit && h("small", null, limit)),
      total("Filtered", totals.filtered, by(relay.filtered)),
      total("Rejected", totals.rejected, "", "warn"),
      total("Lost", totals.lost, by(relay.lost), "bad"),
      cell(null, "", button)),
    ...trouble(relay).map((line, k) => row({ class: "more", "data-key": `${name}/${k}` }, h("td", { role: "cell", colspan: 10, class: "wide" }, line))),
  ];
}

// What is wrong with a relay, and what was.
function trouble({ error, last_error: past, pause, owner }) {
  const lines = [];
  const line = (kind, ...text) => lines.push(h("small", { class: `wrap ${kind}` }, text));
  if (owner) line("quiet", `Runs in ${owner}; this process stands by.`);
  if (pause) line("info", `Paused ${ago(pause.since_ms)}, until ${pause.until_ms ? minute(pause.until_ms) : "somebody resumes it"}.`);
  if (error) {
    const next = error.next_retry_ms ? `, tried again in ${span((error.next_retry_ms - now()) / 1000)}` : "";
    line("bad", error.text, h("span", { class: "quiet" }, `${error.since_ms ? ` · since ${span((now() - error.since_ms) / 1000)}` : ""}${next}`));
  } else if (past) {
    line("quiet", `Last error, ${ago(past.at_ms)}: ${past.text}`);
  }
  return lines;
}

function dead({ dead_letters: store }, all) {
  const parked = all.filter((relay) => relay.dead_letters);
  if (!parked.length) {
    return h("div", { class: "sheet" }, empty("None.", "What a sink will never take is parked here with its answer, and the relay goes on."));
  }
  const kept = store ? `${bytes(store.bytes)} of ${bytes(store.max_bytes)} are kept, the oldest go first; strata dlq sends them again.` : "";
  const rows = parked.map((relay) => row({ "data-key": relay.name },
    cell(null, "wide", h("b", null, relay.name)),
    cell("Samples parked", "n", whole(relay.dead_letters)),
    cell("Letters kept", "n", whole(relay.kept_letters)),
    cell("Of those read", "n", `${((relay.dead_letters / Math.max(1, relay.totals.read)) * 100).toFixed(2)} %`),
    cell("Last error of the sink", "wrap wide", (relay.error ?? relay.last_error)?.text ?? "–")));
  return h("div", { class: "sheet" }, table("Dead letters", [["Relay"], ["Samples parked", "n"], ["Letters kept", "n"], ["Of those read", "n"], ["Last error of the sink"]], rows),
    h("p", { class: "empty" }, kept));
}

const labels = (all) => Object.entries(all).map(([name, value]) => `${name}="${value}"`).join(", ");

function targets() {
  const { targets: all, dropped } = seen.targets;
  const [words, health] = [at("filter").value.trim().toLowerCase(), at("health").value];
  const has = (...texts) => texts.some((text) => text?.toLowerCase().includes(words));
  const wanted = all.filter((t) => (!health || t.health === health) && has(t.job, t.url, t.health, t.last_error, labels(t.labels)));
  const left = health ? [] : dropped.filter((t) => has(t.job, t.reason, t.detail, labels(t.discovered_labels)));
  if (!all.length && !dropped.length) {
    return [h("div", { class: "sheet" }, empty("Nothing is scraped.", "Add targets below ", code("scrape_configs:"), " in the configuration; ",
      code("strata targets --find"), " shows what it would find, then reload."))];
  }
  if (!wanted.length && !left.length) return [h("div", { class: "sheet" }, empty("No target fits.", `There are ${many(all.length, "target")}; the filter hides all.`))];
  const jobs = new Map(wanted.map((t) => [t.job, []]));
  wanted.forEach((t) => jobs.get(t.job).push(t));
  const isOpen = words || health || all.length <= 12;
  const groups = [...jobs].map(([name, list]) => job(name, list, isOpen));
  return [h("div", { class: "sheet" }, groups, left.length ? leftOut(left, !!(words || !all.length)) : null)];
}

function job(name, list, isOpen) {
  const of = (word) => list.filter((t) => t.health === word).length;
  const worst = ["down", "unknown", "up"];
  const rows = list.sort((a, b) => worst.indexOf(a.health) - worst.indexOf(b.health)).slice(0, ROWS_MAX).map(target);
  const more = list.length - rows.length;
  const columns = [["Health"], ["Target"], ["Samples", "n"], ["Took", "n"], ["Last scrape", "n"], ["Missed", "n"]];
  return h("details", { "data-key": `${name}/${isOpen}`, open: isOpen || of("down") > 0 },
    h("summary", null, h("b", null, name), worst.filter(of).map((word) => h("span", { class: `state ${KINDS[word]}` }, `${count(of(word))} ${word}`))),
    table(`Targets of ${name}`, columns, rows),
    more > 0 && h("p", { class: "empty" }, `${whole(more)} more: the filter finds them.`));
}

function target(t) {
  const since = t.down_since_ms ? `, down for ${span((now() - t.down_since_ms) / 1000)}` : "";
  return row({ "data-key": t.id },
    cell(null, "", state(t.health)),
    cell(null, "wrap wide", t.url, h("small", null, labels(t.labels)), t.last_error && h("small", { class: "bad" }, t.last_error, since)),
    cell("Samples", "n", count(t.samples)),
    cell("Took", "n", t.last_scrape_ms ? `${(t.last_duration_s * 1000).toFixed(0)} ms` : "–"),
    cell("Last scrape", "n", t.last_scrape_ms ? ago(t.last_scrape_ms) : "–"),
    cell("Missed", `n ${t.missed ? "warn" : ""}`, count(t.missed)));
}

const REASONS = { relabeled: "dropped by a rule", duplicate: "twice there", invalid: "no target" };

function leftOut(list, isOpen) {
  const rows = list.slice(0, ROWS_MAX).map((t, k) => row({ "data-key": k },
    cell("Job", "", t.job), cell("Reason", "", REASONS[t.reason] ?? t.reason), cell("Detail", "wrap wide", t.detail),
    cell("Found as", "wrap wide", h("small", null, labels(t.discovered_labels)))));
  return h("details", { "data-key": `left out/${isOpen}`, open: isOpen },
    h("summary", null, h("b", null, "Left out"), h("span", { class: "quiet" }, many(list.length, "target"), " found and not scraped")),
    table("Targets left out", [["Job"], ["Reason"], ["Detail"], ["Found as"]], rows),
    list.length > rows.length && h("p", { class: "empty" }, `${whole(list.length - rows.length)} more: the filter finds them.`));
}

// The tap.

async function tap() {
  const form = new FormData(at("tap"));
  const query = new URLSearchParams([...form].filter(([, value]) => value));
  tapping = new AbortController();
  at("tap-button").textContent = "Stop";
  at("lines").replaceChildren();
  at("tap-state").textContent = "Waiting for the first sample…";
  try {
    const answer = await ask(`api/v1/tap?${query}`, { signal: tapping.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", shown = 0; ; ) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      shown += tapped(lines.map((line) => JSON.parse(line)), shown);
    }
    at("tap-state").textContent = "Strata has ended the tap.";
  } catch (error) {
    if (error.status === 401) forget();
    at("tap-state").textContent = error.name === "AbortError" ? "Stopped." : `${sentence(error.message)}.`;
  }
  tapping = null;
  at("tap-button").textContent = "Start";
}

// Shows lines of the tap; how many samples they are.
function tapped(lines, before) {
  const [pane, samples] = [at("lines"), lines.filter((line) => !line.tap)];
  const follows = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40;
  pane.append(...samples.map((s) => h("div", null, h("span", null, s.timestamp ? `${new Date(s.timestamp).toISOString().slice(11, 23)}  ` : ""), sample(s))));
  while (pane.childElementCount > LINES_MAX) pane.firstChild.remove();
  if (follows) pane.scrollTop = pane.scrollHeight;
  const counts = lines.findLast((line) => line.tap)?.tap;
  const shown = before + samples.length;
  if (counts || samples.length) {
    const more = counts?.over_rate ? `, ${count(counts.over_rate)} more went by over the rate` : "";
    const missed = counts?.missed ? `, ${many(counts.missed, "sample")} missed: this page is too slow for them` : "";
    if (counts || !at("tap-state").textContent.startsWith("Shown")) at("tap-state").textContent = `Shown so far: ${count(shown)}${more}${missed}.`;
  }
  return samples.length;
}

function sample(s) {
  if (s.name === undefined) return s.encoded ?? s.encoded_base64 ?? JSON.stringify(s);
  const own = labels(s.labels ?? {});
  return `${s.name}${own && `{${own}}`} ${s.value ?? ""}${s.stale ? " (stale)" : ""}`;
}

// What a person does.

document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-do]");
  const name = button?.dataset.name;
  switch (button?.dataset.do) {
    case "pause": return change(`api/v1/relays/${encodeURIComponent(name)}/pause`, name);
    case "resume": return change(`api/v1/relays/${encodeURIComponent(name)}/resume`, name);
    case "cancel": return at("ask").close();
    case "token":
      if (!token) return askToken(look);
      forget();
      return look();
  }
});
at("ask").addEventListener("submit", () => {
  token = at("ask-token").value.trim();
  sessionStorage.setItem(TOKEN, token);
  show();
  afterToken?.();
});
at("tap").addEventListener("submit", (event) => {
  event.preventDefault();
  if (tapping) tapping.abort();
  else tap();
});
at("filter").addEventListener("input", show);
at("health").addEventListener("input", show);
document.addEventListener("visibilitychange", () => document.hidden || look());
show();
keepLooking();
