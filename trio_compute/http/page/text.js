// Words, numbers and times for people.

const $ = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isText = (value) => typeof value === "string" && value !== "";

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(id, text) {
  const place = $(id);
  if (text === null) {
    place.textContent = "not known yet";
  } else if (place.textContent !== text) {
    place.textContent = text;
  }
  place.classList.toggle("unknown", text === null);
}

function showText(id, text) {
  $(id).textContent = text ?? "";
  $(id).classList.remove("unknown");
  $(id).hidden = !text;
}

const words = (name) => String(name).replaceAll("_", " ");

function duration(ms) {
  if (ms < 1) return "< 1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  const minutes = Math.floor(ms / 60000);
  if (minutes < 60) return `${minutes} min ${Math.floor(ms / 1000) % 60} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
}

function ago(moment) {
  const seconds = Math.max(0, Math.floor((Date.now() + clockSkewMs - moment) / 1000));
  return seconds < 2 ? "just now" : `${duration(seconds * 1000).replace(/\.\d+ s$/, " s")} ago`;
}

function clock(moment) {
  const date = new Date(moment);
  const time = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}

function timeElement(moment) {
  if (!Number.isFinite(moment)) return element("span", "at an unknown time", "when");
  const made = element("time", clock(moment));
  made.dateTime = new Date(moment).toISOString();
  made.title = made.dateTime;
  return made;
}

const momentOf = (text) => (isText(text) ? Date.parse(text) : NaN);
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));
