// The panels of the page: each shows one thing that is known, or says that it is not.

const MOST_ERRORS = 20;
const MOST_CHANGES = 10;

function clear() {
  for (const id of ["state-text", "since", "phase", "activity", "downtime-now", "downtime-total", "started", "tenant", "timeline", "prewarm-text", "start-text", "errors-text", "changes-text", "databases-text"]) say(id, null);
  for (const id of ["waterfall", "errors", "changes", "notes", "databases"]) $(id).replaceChildren();
  showText("state-error", null);
  say("state-meaning", "");
  $("notes").hidden = $("prewarm-progress").hidden = true;
  delete $("state").dataset.tone;
  light(null, null);
}

function light(state, passage) {
  let lit = null;
  for (const box of document.querySelectorAll(".state[data-state]")) {
    box.classList.toggle("lit", box.dataset.state === state);
    if (box.dataset.state === state) lit = box;
  }
  for (const edge of document.querySelectorAll(".edge")) {
    const { from, to } = edge.dataset;
    edge.classList.toggle("next", from === state);
    edge.classList.toggle("taken", passage?.from === from && passage?.to === to && to === state);
  }
  return lit;
}

function showStatus() {
  const status = known.status;
  if (!status) return;
  const history = Array.isArray(status.history) ? status.history : [];
  const lit = light(status.status, history.at(-1));
  const stale = document.body.classList.contains("stale");
  say("state-text", stale ? `${words(status.status)} (last known)` : words(status.status));
  say("state-meaning", lit && !stale ? lit.querySelector("title").textContent : "");
  $("state").dataset.tone = lit?.dataset.tone ?? "idle";
  document.title = `${stale ? "? " : ""}${words(status.status)} · Compute`;
  showText("state-error", isText(status.error) ? status.error : null);
  say("phase", isText(status.phase) ? PHASES[status.phase] ?? words(status.phase) : "none is running");
  say("tenant", isText(status.tenant) ? status.tenant : "none");
  say("timeline", isText(status.timeline) ? status.timeline : "none");
  showNotes(status);
  showDatabases(status);
  showChanges(history);
  showErrors();
  showTimes();
}

function showTimes() {
  const status = known.status;
  if (!status) return;
  const active = momentOf(status.last_active), since = momentOf(status.history?.at?.(-1)?.at), started = momentOf(status.start_time);
  // Time does not go on for what is only remembered.
  const tell = document.body.classList.contains("stale") ? (moment) => `at ${clock(moment)}` : ago;
  say("activity", Number.isFinite(active) ? tell(active) : "none seen yet");
  say("since", Number.isFinite(since) ? tell(since) : "when the process began");
  say("started", Number.isFinite(started) ? tell(started) : null);
}

function showNotes(status) {
  const notes = [];
  if (isText(status.migration_error)) notes.push(`A migration failed: ${status.migration_error}`);
  if (Array.isArray(status.restart_required)) notes.push(`These fields of the spec wait for a restart: ${status.restart_required.join(", ")}`);
  if (Array.isArray(status.pending_restart)) notes.push(`These settings of Postgres wait for a restart: ${status.pending_restart.join(", ")}`);
  $("notes").replaceChildren(...notes.map((note) => element("li", note)));
  $("notes").hidden = notes.length === 0;
}

function showDatabases(status) {
  const failed = Array.isArray(status.databases_failed) ? status.databases_failed : [];
  $("databases").replaceChildren(...failed.map((failure) => {
    const item = element("li");
    item.append(element("span", failure.database), element("span", PHASES[`catalog.${failure.phase}`] ?? words(failure.phase)), element("span", failure.error, "message"));
    return item;
  }));
  showText("databases-text", failed.length ? "The next apply tries again." : "all are as the spec wants them");
}

function showChanges(history) {
  $("changes").replaceChildren(...history.slice(-MOST_CHANGES).reverse().map((passage) => {
    const item = element("li");
    item.append(timeElement(momentOf(passage.at)), `${words(passage.from)} → ${words(passage.to)} `, element("span", passage.event, "event"));
    return item;
  }));
  showText("changes-text", history.length ? null : "none since the process began");
}

function noteError(kind, data) {
  const failed = kind === "transition" ? /Failed$|^Crashed$|^Terminated$/.test(data.event) : data.status === "failed";
  if (!failed || !isText(data.error)) return;
  const what = kind === "transition" ? words(data.to) : words(kind);
  const latest = known.errors[0];
  if (latest && latest.what === what && latest.text === data.error) {
    latest.count += 1;
    latest.at = momentOf(data.at);
  } else {
    known.errors.unshift({ what, text: data.error, at: momentOf(data.at), count: 1 });
    known.errors.length = Math.min(known.errors.length, MOST_ERRORS);
  }
  showErrors();
}

function showErrors() {
  const errors = [...known.errors];
  const present = known.status?.error;
  // The events reach back only so far.
  if (isText(present) && !errors.some((error) => error.text === present)) errors.push({ what: words(known.status.status), text: present, at: NaN, count: 1 });
  $("errors").replaceChildren(...errors.map((error) => {
    const item = element("li");
    item.append(timeElement(error.at), element("span", error.count > 1 ? `${error.what}, ${error.count} times` : error.what), element("span", error.text, "message"));
    return item;
  }));
  showText("errors-text", errors.length ? null : "none remembered");
}

function showDowntime(text) {
  const value = (name) => {
    const line = text?.split("\n").find((each) => each.startsWith(`${name} `));
    const number = line === undefined ? NaN : Number(line.slice(name.length + 1));
    return Number.isFinite(number) ? number : null;
  };
  const now = value("compute_pg_current_downtime_ms"), total = value("compute_pg_downtime_ms_total");
  // Both are 0 before anybody has ever looked.
  const looked = (value("compute_ctl_activity_check_duration_seconds_count") ?? 0) > 0 || now > 0 || total > 0;
  const unknown = text === null ? null : "not measured yet";
  say("downtime-now", looked && now !== null ? (now > 0 ? duration(now) : "none") : unknown);
  say("downtime-total", looked && total !== null ? (total > 0 ? duration(total) : "none") : unknown);
}

function showPrewarm(state, problem) {
  const bar = $("prewarm-progress");
  const running = state?.status === "prewarming";
  const measured = running && isNumber(state.pages_done) && isNumber(state.pages_total) && state.pages_total > 0;
  bar.hidden = !running;
  if (measured) {
    bar.max = state.pages_total;
    bar.value = state.pages_done;
  } else {
    bar.removeAttribute("value");
  }
  say("prewarm-text", problem === null ? prewarmText(state, measured) : `could not be read: ${problem}`);
}

function prewarmText(state, measured) {
  const pages = (number) => number.toLocaleString("en-GB");
  switch (state?.status) {
    case undefined:
      return "not available";
    case "not_prewarmed":
      return "Not prewarmed.";
    case "prewarming": {
      if (!measured) return "Running; how far it is, is not known yet.";
      const percent = Math.floor((100 * state.pages_done) / state.pages_total);
      const rate = isNumber(state.pages_per_second) ? `, ${pages(Math.round(state.pages_per_second))} a second` : "";
      const left = isNumber(state.estimate_seconds) ? `, about ${duration(state.estimate_seconds * 1000)} left` : "";
      return `${percent} %: ${pages(state.pages_done)} of ${pages(state.pages_total)} pages${rate}${left}.`;
    }
    case "completed": {
      const spent = ["state_download_time_ms", "uncompress_time_ms", "prewarm_time_ms"].map((name) => state[name]);
      const time = spent.every(isNumber) ? ` It took ${duration(spent.reduce((sum, ms) => sum + ms, 0))}.` : "";
      if (![state.prewarmed, state.total, state.skipped].every(isNumber)) return `Done.${time}`;
      return `Done: ${pages(state.prewarmed)} of ${pages(state.total)} pages loaded, ${pages(state.skipped)} skipped.${time}`;
    }
    case "skipped":
      return "Skipped: no state of the cache is stored.";
    case "cancelled":
      return "Cancelled.";
    case "failed":
      return `Failed: ${state.error ?? "no reason is known"}`;
    default:
      return words(state.status);
  }
}
