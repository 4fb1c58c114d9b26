"use strict";

const at = (id) => document.getElementById(id);
let picture = null;
let limits = { max_upload_bytes: 10_000_000 };
let running = null;

function words(number, digits = 0) {
  return number.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function probability(value) {
  return value >= 0.001 ? value.toFixed(4) : value.toPrecision(2);
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

function choosePicture(file) {
  if (file && !file.type.startsWith("image/")) return fail(`${file.name || "This file"} is no picture.`);
  if (file && file.size > limits.max_upload_bytes) {
    return fail(`This picture has ${words(file.size / 1e6, 1)} MB; at most ${words(limits.max_upload_bytes / 1e6, 1)} MB can be sent. Make it smaller.`);
  }
  fail("");
  picture = file;
  URL.revokeObjectURL(at("preview").src);
  at("preview").hidden = at("remove").hidden = !file;
  at("image-name").textContent = file ? file.name || "Pasted picture" : "Add a picture";
  if (file) at("preview").src = URL.createObjectURL(file);
  else at("preview").removeAttribute("src");
}

function place(value) {
  // log-odds, so that 0.001 and 0.01 can be told apart; ±9.2 is 1 in 10,000
  const odds = Math.log(Math.max(value, 1e-9) / Math.max(1 - value, 1e-9));
  return `${(Math.min(Math.max(odds, -9.2), 9.2) / 18.4 + 0.5) * 100}%`;
}

function badge(element, row) {
  if (row.previous_rank === undefined || row.previous_rank === row.rank) return;
  const up = row.previous_rank === null ? Infinity : row.previous_rank - row.rank;
  element.textContent = up === Infinity ? "▲ new" : up > 0 ? `▲ ${up}` : `▼ ${-up}`;
  element.classList.add(up > 0 ? "up" : "down");
  const from = row.previous_rank === null ? "not among the first 100" : `rank ${row.previous_rank}`;
  element.title = `${from} without thinking`;
  element.setAttribute("aria-label", `moved ${up > 0 ? "up" : "down"}: ${element.title}`);
}

function listed(row) {
  const item = at("hit").content.cloneNode(true).firstElementChild;
  const part = (name) => item.querySelector(name);
  item.dataset.id = row.id;
  part(".rank").textContent = row.rank;
  part(".what b").textContent = row.text || row.id.split("/").at(-1);
  part(".what small").textContent = row.id;
  part(".score").textContent = row.score.toFixed(3);
  part(".score").title = "cosine similarity";
  badge(part(".moved"), row);
  const thumb = part(".thumb");
  if (row.has_picture) {
    const image = new Image();
    image.alt = "";
    image.loading = "lazy";
    image.onerror = () => { thumb.textContent = "gone"; };
    image.src = `/api/picture?id=${encodeURIComponent(row.id)}`;
    thumb.append(image);
  } else {
    thumb.textContent = row.file ? "clip" : "text";
  }
  return item;
}

function show(answer) {
  const { thinking } = answer;
  const chosen = thinking.gate_chooses_thinking;
  at("verdict").textContent = chosen ? "The gate would think" : "The gate would not think";
  at("numbers").textContent = `Probability that thinking helps ${probability(thinking.gate_probability)}, threshold ${probability(thinking.threshold)}`;
  at("needle").style.left = place(thinking.gate_probability);
  at("mark").style.left = place(thinking.threshold);
  at("tokens").textContent = `(${thinking.num_reasoning_tokens} tokens)`;
  at("thought").textContent = thinking.thought || "(nothing)";
  at("shift").textContent = `It moved the query’s vector to a cosine of ${answer.cosine.toFixed(3)} with the one before.`;
  for (const side of ["without", "with"]) {
    const ranking = answer[side];
    const isChosen = (side === "with") === chosen;
    const tokens = side === "with" ? thinking.num_reasoning_tokens : 0;
    at(`${side}-badge`).hidden = !isChosen;
    at(side).parentElement.classList.toggle("chosen", isChosen);
    at(`${side}-times`).textContent = `${words(ranking.encode_ms)} ms for the vector, ${words(ranking.search_ms)} ms to search, ${tokens} tokens`;
    at(side).replaceChildren(...ranking.results.map(listed));
  }
  at("empty").hidden = true;
  at("answer").hidden = false;
  const moved = answer.with.results.filter((row) => row.previous_rank !== row.rank).length;
  at("status").textContent = `${answer.with.results.length} results. ${at("verdict").textContent}. ${moved} results are at another place with thinking.`;
}

async function search(event) {
  event?.preventDefault();
  const text = at("text").value.trim();
  if (!text && !picture) {
    at("text").focus();
    return fail("There is nothing to search with: type some words, or add a picture.");
  }
  fail("");
  const form = new FormData();
  for (const name of ["text", "instruction", "top_k"]) form.append(name, at(name).value.trim());
  if (picture) form.append("image", picture, "picture");
  running?.abort();
  const own = running = new AbortController();
  busy(true);
  try {
    const response = await fetch("/api/search", { method: "POST", body: form, signal: own.signal });
    const answer = await response.json().catch(() => ({ error: `The server answered with ${response.status}.` }));
    if (!response.ok) throw new Error(answer.error ?? `The server answered with ${response.status}.`);
    show(answer);
    const kept = new URLSearchParams([...form].filter(([name, value]) => name !== "image" && value));
    history.replaceState(null, "", `?${kept}`);
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(error instanceof TypeError ? "The server cannot be reached: is `twn serve` still running?" : error.message);
  } finally {
    if (running === own) busy(false);
  }
}

function busy(isBusy) {
  at("go").setAttribute("aria-disabled", isBusy);
  at("go").textContent = isBusy ? "Searching…" : "Search";
  at("answer").setAttribute("aria-busy", isBusy);
  if (isBusy) at("status").textContent = "Searching";
}

function mark(event) {
  const id = event.type === "mouseover" ? event.target.closest("li")?.dataset.id : undefined;
  for (const item of document.querySelectorAll("li")) item.classList.toggle("same", id !== undefined && item.dataset.id === id);
}

async function start() {
  at("search").addEventListener("submit", search);
  at("image").addEventListener("change", () => { choosePicture(at("image").files[0] ?? null); at("image").value = ""; });
  at("remove").addEventListener("click", () => { choosePicture(null); at("image").focus(); });
  for (const kind of ["dragover", "dragenter"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) choosePicture(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) { event.preventDefault(); choosePicture(file); }
  });
  at("answer").addEventListener("mouseover", mark);
  at("answer").addEventListener("mouseleave", mark);
  const asked = new URLSearchParams(location.search);
  for (const name of ["text", "instruction", "top_k"]) if (asked.get(name)) at(name).value = asked.get(name);
  try {
    limits = await (await fetch("/api/index")).json();
    at("about").textContent = `${words(limits.num_documents)} documents in “${limits.index}”`;
    at("top_k").max = limits.most_results;
    if (limits.default_instruction) at("instruction").placeholder = limits.default_instruction;
    at("instructions").replaceChildren(...limits.instructions.map((one) => new Option(one, one)));
  } catch {
    fail("The server cannot be reached: is `twn serve` still running?");
  }
  if (at("text").value) search();
}

start();
