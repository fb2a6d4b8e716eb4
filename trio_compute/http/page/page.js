// The token and everything that is known live in this module and nowhere else; a reload forgets them.
// Whatever the server says becomes text, never markup.

const PAUSES_MS = [500, 1000, 2000, 4000, 8000, 15000, 30000];
const SILENCE_MS = 45000; // the server says something every 15 s
const STEADY_MS = 5000; // a stream that lived longer was no failure
const REQUEST_MS = 10000;
const METRICS_MS = 5000;
const BREATH_MS = 250; // between two reads of the same thing
const LONGEST_EVENT = 1 << 20;

class Refused extends Error {}

let token = null;
let session = null; // what ends everything that was begun with one token
let known = nothing();
let clockSkewMs = 0; // the server's clock minus ours

function nothing() {
  return { status: null, spans: null, spansAt: 0, prewarmNumber: 0, lastTransition: null, errors: [], newest: 0, seenAt: null };
}

// Asking the server

// Paths are relative, so that the page also works behind a proxy that puts something in front of them.
async function ask(path, signal, limitMs) {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  const limit = limitMs ? AbortSignal.any([signal, AbortSignal.timeout(limitMs)]) : signal;
  const answer = await fetch(path, {
    headers, signal: limit, cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
  });
  const date = Date.parse(answer.headers.get("date") ?? "");
  // It is given in whole seconds, so less than that is no difference.
  if (Number.isFinite(date)) clockSkewMs = Math.abs(date + 500 - Date.now()) < 2000 ? 0 : date + 500 - Date.now();
  if ([400, 401, 403].includes(answer.status)) throw new Refused(await errorOf(answer));
  return answer;
}

async function errorOf(answer) {
  try {
    const body = await answer.json();
    if (isText(body.error)) return `${body.error} (${answer.status})`;
  } catch { /* not ours: the number must do */ }
  return `the answer was ${answer.status}`;
}

// One read at a time of each thing, and one more if it changed meanwhile.
function reader(read) {
  let busy = false, again = false;
  return async () => {
    again = true;
    if (busy) return;
    busy = true;
    while (again && session) {
      again = false;
      const mine = session;
      try {
        await read(mine);
      } catch (error) {
        if (mine === session && error instanceof Refused) askForToken(error.message);
      }
      await sleep(BREATH_MS);
    }
    busy = false;
  };
}

const readStatus = reader(async (mine) => {
  try {
    const answer = await ask("status", mine.signal, REQUEST_MS);
    if (!answer.ok) throw new Error(await errorOf(answer));
    const status = await answer.json();
    if (mine !== session) return;
    known.status = status;
    known.seenAt = Date.now();
  } catch (error) {
    if (error instanceof Refused || mine !== session) throw error;
    // A server that is about to go may have told it by an event only.
    if (known.lastTransition) known.status = { ...(known.status ?? {}), status: known.lastTransition.to, error: known.lastTransition.error ?? null, phase: undefined };
  }
  showStatus();
});

const readSpans = reader(async (mine) => {
  const answer = await ask("spans", mine.signal, REQUEST_MS);
  if (mine !== session) return;
  if (answer.status === 404) return showNoSpans("not available");
  if (!answer.ok) return showNoSpans(`could not be read: ${await errorOf(answer)}`);
  known.spans = await answer.json();
  known.spansAt = performance.now();
  showSpans();
});

const readMetrics = reader(async (mine) => {
  const answer = await ask("metrics", mine.signal, REQUEST_MS);
  const text = answer.ok ? await answer.text() : null;
  if (mine === session) showDowntime(text);
});

const readPrewarm = reader(async (mine) => {
  const before = known.prewarmNumber;
  const answer = await ask("lfc/prewarm", mine.signal, REQUEST_MS);
  const state = answer.ok ? await answer.json() : null;
  const problem = answer.ok || answer.status === 404 ? null : await errorOf(answer);
  // An event that came meanwhile knows better.
  if (mine !== session || known.prewarmNumber !== before) return;
  showPrewarm(state, problem);
});

function readAll() {
  readStatus();
  readSpans();
  readMetrics();
  readPrewarm();
}

// The stream of events

async function watch(mine) {
  for (let failures = 0; mine === session; failures += 1) {
    let began = null, problem = null;
    try {
      const stream = AbortSignal.any([mine.signal, mine.silence.signal]);
      const answer = await ask(`events?after=${known.newest}`, stream);
      if (!answer.ok) throw new Error((problem = await errorOf(answer)));
      began = performance.now();
      await follow(mine, answer.body);
    } catch (error) {
      if (mine !== session) return;
      if (error instanceof Refused) return askForToken(error.message);
    } finally {
      mine.silence.abort();
      mine.silence = new AbortController();
    }
    if (mine !== session) return;
    if (began !== null && performance.now() - began > STEADY_MS) failures = 0;
    lost(failures > 0 || hasEnded(), problem);
    await pause(mine, PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]);
  }
}

async function follow(mine, body) {
  const source = body.getReader(), decoder = new TextDecoder();
  let text = "", first = true, watchdog = 0;
  try {
    for (;;) {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => mine.silence.abort(), SILENCE_MS);
      const { done, value } = await source.read();
      if (done || mine !== session) return;
      if (first) found();
      first = false;
      text += decoder.decode(value, { stream: true });
      const parts = text.split("\n\n");
      text = parts.pop();
      parts.forEach(take);
      if (text.length > LONGEST_EVENT) throw new Error("an event is too long");
    }
  } finally {
    clearTimeout(watchdog);
  }
}

function take(part) {
  const fields = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s, 2)));
  known.seenAt = Date.now();
  if (!fields.event) return;
  let data;
  try {
    data = JSON.parse(fields.data);
  } catch {
    return;
  }
  const number = Number(fields.id) || known.newest;
  known.newest = number;
  noteError(fields.event, data);
  if (fields.event === "transition") {
    known.lastTransition = data;
    readStatus();
    readMetrics();
  } else if (fields.event === "phase") {
    readSpans();
    readStatus();
  } else if (fields.event === "prewarm") {
    known.prewarmNumber = number;
    showPrewarm(data, null);
  }
}

function pause(mine, ms) {
  const until = performance.now() + ms * (0.85 + 0.3 * Math.random());
  return new Promise((wake) => {
    const end = () => {
      clearInterval(timer);
      mine.wake = null;
      wake();
    };
    const tick = () => {
      const left = until - performance.now();
      if (left <= 0 || mine !== session) return end();
      $("retry-text").textContent = `Trying again in ${Math.ceil(left / 1000)} s.`;
    };
    const timer = setInterval(tick, 200);
    mine.wake = end;
    tick();
  });
}

// The connection

function connection(kind, text) {
  $("connection").dataset.connection = kind;
  if ($("connection-text").textContent !== text) $("connection-text").textContent = text;
}

function found() {
  connection("live", "live");
  document.body.classList.remove("stale");
  const tried = document.activeElement === $("retry-now");
  $("gone").hidden = $("retry").hidden = true;
  openView();
  if (tried) $("headline").focus();
  readAll();
}

const hasEnded = () => $("state").dataset.tone === "ending";

function lost(forSure, problem) {
  connection("lost", forSure ? "no connection" : "connection lost, trying again");
  $("open").disabled = false;
  if (!forSure) return;
  document.body.classList.add("stale");
  const state = known.status ? `, in state ${words(known.status.status)}` : "";
  const seen = known.seenAt === null ? "" : `It was last heard of at ${clock(known.seenAt)}${state}. What you see is from then.`;
  // Said once, not at every attempt: this is read aloud.
  say("gone-title", problem ? "The compute cannot be followed." : hasEnded() ? "The compute has ended." : "The compute does not answer.");
  say("gone-text", problem ? `Its answer is: ${problem}. ${seen}` : seen);
  $("gone").hidden = $("retry").hidden = false;
  showStatus();
}

// The token

function begin(newToken) {
  end();
  token = newToken;
  const controller = new AbortController();
  session = { signal: controller.signal, stop: () => controller.abort(), silence: new AbortController(), wake: null };
  connection("none", "connecting");
  watch(session);
}

function end() {
  const ended = session;
  session = null;
  token = null;
  known = nothing();
  ended?.stop();
  ended?.wake?.();
}

function askForToken(problem) {
  const hadOne = token !== null;
  const wasOpen = !$("view").hidden;
  end();
  connection("none", "no token");
  document.title = "Compute";
  $("view").hidden = $("gone").hidden = $("retry").hidden = $("forget").hidden = true;
  document.body.classList.remove("stale");
  $("ask").hidden = false;
  $("open").disabled = false;
  $("ask-problem").textContent = hadOne && problem ? `The compute ${wasOpen ? "no longer accepts" : "refuses"} this token: ${problem}` : "";
  $("token").setAttribute("aria-invalid", String(hadOne && Boolean(problem)));
  $("token").focus();
}

function openView() {
  $("forget").hidden = token === null;
  if (!$("view").hidden) return;
  const asked = !$("ask").hidden;
  clear();
  $("ask").hidden = true;
  $("view").hidden = false;
  if (asked) $("headline").focus();
}

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("token").value.trim().replace(/^bearer\s+/i, "");
  $("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(given)) {
    $("ask-problem").textContent = "This is not a token: it has spaces or other foreign characters, or is empty.";
    return $("token").focus();
  }
  $("ask-problem").textContent = "";
  $("open").disabled = true;
  begin(given);
});
$("forget").addEventListener("click", () => askForToken(""));
$("retry-now").addEventListener("click", () => session?.wake?.());

setInterval(() => {
  if (!session || $("view").hidden || document.hidden) return;
  showTimes();
  if (!document.body.classList.contains("stale") && known.spans?.some?.((span) => !isNumber(span.duration_seconds))) showSpans();
}, 1000);
setInterval(() => {
  if (session && !$("view").hidden && !document.hidden && $("connection").dataset.connection === "live") readMetrics();
}, METRICS_MS);

begin(null); // not every compute asks for a token
