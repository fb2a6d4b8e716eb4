// The waterfall of the start-up.

const MOST_PHASES = 40;
const PHASES = {
  total_startup: "whole start",
  wait_for_spec: "wait for a spec",
  prepare_pgdata: "prepare the data directory",
  "pgdata.recreate": "empty the data directory",
  check_safekeepers_synced: "ask the safekeepers",
  sync_safekeepers: "sync the safekeepers",
  get_basebackup: "get the basebackup",
  try_get_basebackup: "one attempt",
  "basebackup.connect": "connect to the pageserver",
  "basebackup.unpack": "receive and unpack",
  start_postgres: "start Postgres",
  configure_as_primary: "configure Postgres",
  apply_spec_sql: "apply the catalog",
};

function showNoSpans(text) {
  known.spans = null;
  $("waterfall").replaceChildren();
  showText("start-text", text);
}

function startUp(spans) {
  const usable = spans.filter((span) => isNumber(span?.start_seconds) && isText(span.name));
  const end = (span) => span.start_seconds + (span.duration_seconds ?? 0);
  const whole = usable.find((span) => span.name === "total_startup" && isNumber(span.duration_seconds));
  const waited = usable.find((span) => span.name === "wait_for_spec" && isNumber(span.duration_seconds));
  const from = whole ? whole.start_seconds : waited ? end(waited) : 0;
  const rows = usable.filter((span) => span !== whole && span !== waited && span.start_seconds >= from - 0.001 && (!whole || span.start_seconds < end(whole)));
  const open = rows.some((span) => !isNumber(span.duration_seconds));
  const latest = Math.max(from, ...rows.map(end));
  const to = whole ? end(whole) : open ? latest + (performance.now() - known.spansAt) / 1000 : latest;
  return { whole, rows: rows.sort((a, b) => a.start_seconds - b.start_seconds || end(b) - end(a)), from, to, open };
}

function showSpans() {
  if (!Array.isArray(known.spans)) return;
  const { whole, rows, from, to, open } = startUp(known.spans);
  const length = Math.max(to - from, 0.001);
  const shown = new Set([...rows].sort((a, b) => (b.duration_seconds ?? Infinity) - (a.duration_seconds ?? Infinity)).slice(0, MOST_PHASES));
  const parents = new Map(rows.map((span) => [span.name, span.parent]));
  const items = rows.filter((span) => shown.has(span)).map((span) => phaseItem(span, from, length, depthOf(span, parents)));
  if (whole) items.unshift(phaseItem(whole, from, length, 0, "whole"));
  $("waterfall").replaceChildren(...items);
  const hidden = rows.length - shown.size;
  const more = hidden > 0 ? ` ${hidden} shorter phases are not shown.` : "";
  showText("start-text", rows.length === 0 ? "nothing was measured yet" : whole ? `It took ${duration(whole.duration_seconds * 1000)}.${more}` : open ? `It goes on.${more}` : `It did not come to its end.${more}`);
}

function depthOf(span, parents) {
  let depth = 0;
  for (let name = span.parent; name && parents.has(name) && depth < 4; name = parents.get(name)) depth += 1;
  return depth;
}

function phaseName(span) {
  // Its parent, above it, says where it belongs; the whole name is a hint.
  const plain = span.name.replace(/^[a-z]+\./, "").replace(/(^|[a-z])([A-Z])/g, (_, end, start) => `${end}${end && " "}${start.toLowerCase()}`);
  const where = isText(span.attributes?.database) ? ` in ${span.attributes.database}` : "";
  return `${PHASES[span.name] ?? words(plain)}${where}`;
}

function phaseItem(span, from, length, depth, kind) {
  const open = !isNumber(span.duration_seconds);
  const start = Math.min(1, Math.max(0, (span.start_seconds - from) / length));
  const share = open ? 1 - start : Math.min(1 - start, span.duration_seconds / length);
  const item = element("li", undefined, open ? "open" : span.failed ? "failed" : kind ?? "");
  const bar = element("span", undefined, "bar"), track = element("span", undefined, "track"), name = element("span", `${phaseName(span)}${span.failed ? " (failed)" : ""}`, "name");
  track.setAttribute("aria-hidden", "true");
  bar.style.setProperty("--from", start.toFixed(4));
  bar.style.setProperty("--share", share.toFixed(4));
  name.style.setProperty("--depth", String(depth));
  name.title = span.name;
  track.append(bar);
  item.append(name, track, element("span", open ? "running" : duration(span.duration_seconds * 1000), "time"));
  return item;
}
