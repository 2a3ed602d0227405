// The page at /console/: what waits for a person, a payout's story, and a person's answer.
// It asks the API beside it with the reader's own token. Everything that others wrote becomes text, never markup.

const ANSWER_MS_MAX = 20_000; // an approval is answered once its outcome is in the log, within some 10 s
const LOOK_AGAIN_MS = 10_000;
const PAGE = 50;
const TOKEN = "streamproc.token";

const at = (id) => document.getElementById(id);
const show = (id, shown) => { at(id).hidden = !shown; };

function made(tag, text = "", given = {}, ...inside) {
  const node = document.createElement(tag);
  if (text !== "") node.textContent = text;
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}

// ---- words ----

// 123456789 paise -> ₹12,34,567.89, as people in India write it.
function amount(paise, currency) {
  const [, whole, last] = /^(\d*?)(\d{1,3})$/.exec(String(Math.floor(paise / 100)));
  const grouped = (whole ? `${whole.replace(/\B(?=(\d\d)+$)/g, ",")},` : "") + last;
  const text = `${grouped}.${String(paise % 100).padStart(2, "0")}`;
  return currency === "INR" ? `₹${text}` : `${text} ${currency}`;
}

function when(iso) {
  return iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "–";
}

function left(iso) {
  if (!iso) return "–";
  const minutes = Math.round((new Date(iso) - Date.now()) / 60_000);
  if (minutes <= 0) return "now";
  return minutes < 90 ? `in ${minutes} min` : `in ${Math.round(minutes / 60)} h`;
}

// The host that a browser would open. A look-alike, or a name before an @, must not pass for the vendor.
function host(url) {
  try {
    const { protocol, hostname } = new URL(url);
    return ["http:", "https:"].includes(protocol) ? hostname : "";
  } catch {
    return "";
  }
}

// ---- the API ----

class Refused extends Error {
  constructor(status, problem) {
    const fields = (problem.errors ?? []).map((one) => `${one.field}: ${one.problem}`);
    super([problem.detail ?? `HTTP ${status}`, ...fields].join("; "));
    this.status = status;
  }
}

async function ask(method, path, { body, headers } = {}) {
  const token = sessionStorage.getItem(TOKEN);
  let answer;
  try {
    answer = await fetch(`../v1/${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, ...(body && { "content-type": "application/json" }), ...headers },
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout(ANSWER_MS_MAX),
      credentials: "omit",
      cache: "no-store",
    });
  } catch {
    throw new Refused(0, { detail: "The API did not answer. Whether an answer of yours was taken is not known: look again." });
  }
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    sessionStorage.removeItem(TOKEN);
    throw new Refused(401, { detail: "This token is unknown, expired or revoked. Sign in again." });
  }
  if (!answer.ok) throw new Refused(answer.status, said);
  return { status: answer.status, said };
}

function tell(problem) {
  at("problem").textContent = problem ? problem.message : "";
  show("problem", Boolean(problem));
}

// ---- what waits ----

function holdRow(hold) {
  const cell = (of, text, className) => made("td", text, { "data-of": of, class: className ?? "said" });
  const link = made("a", amount(hold.amount, hold.currency), { href: `#${encodeURIComponent(hold.payout)}` });
  return made("tr", "", {},
    made("td", "", { class: "amount" }, link),
    cell("Agent", `${hold.agent} (${hold.identity})`),
    made("td", "", { "data-of": "Vendor" },
      made("div", host(hold.vendor_url) || "–", { class: "host" }),
      made("div", hold.vendor_url, { class: "said weak" })),
    cell("Why it waits", hold.reasons.join(", "), "codes"),
    cell("Since", when(hold.received_at), "weak"),
    cell("Ends", left(hold.expires_at), "weak ends"),
    cell("Approved by", hold.approved_by.join(", ") || "nobody yet"));
}

let following = null;

async function holds(after = null) {
  const { said } = await ask("GET", `holds?limit=${PAGE}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
  const rows = document.querySelector("#holds tbody");
  if (after) rows.append(...said.items.map(holdRow));
  else rows.replaceChildren(...said.items.map(holdRow));
  document.querySelector("#holds table").hidden = !rows.childElementCount;
  show("none", !rows.childElementCount);
  at("notes").textContent = said.notes.join("; ");
  following = said.next;
  show("more", Boolean(following));
}

// ---- a payout ----

function facts(pairs) {
  const list = made("dl");
  for (const [name, value] of pairs) list.append(made("dt", name), made("dd", value || "–", { class: "said" }));
  return list;
}

function answerForm(payout) {
  // One key for each form: an answer that is sent again, since its reply was lost, is the same answer.
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const reason = made("input", "", { id: "reason", name: "reason", maxlength: "500", required: "", autocomplete: "off" });
  const form = made("form", "", { id: "answer" },
    made("button", "", { disabled: "", hidden: "" }), // Enter would press the first one, and says neither
    made("label", "Why, for the audit", { for: "reason" }), reason,
    made("button", "Approve", { class: "approve", value: "approve" }),
    made("button", "Reject", { class: "reject", value: "reject" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const action = event.submitter.value;
    const buttons = form.querySelectorAll("button[value]");
    for (const button of buttons) button.disabled = true;
    try {
      const { status, said } = await ask("POST", `holds/${encodeURIComponent(payout)}/${action}`, {
        body: { reason: reason.value },
        headers: { "idempotency-key": `${action}-${key}` },
      });
      tell(null);
      const outcome = status === 202 ? "Your answer is recorded, and not handled yet."
        : said.decision ? `Decided: ${said.decision} (${said.reason}).`
        : `Your approval counts; ${said.needed} more needed.`;
      form.replaceWith(made("p", outcome, { class: "outcome", role: "status" }));
      await story(payout, outcome);
    } catch (problem) {
      if (problem.status === 409) await story(payout).catch(() => {});
      failed(problem);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });
  return form;
}

function findings(found) {
  const items = found.map((one) => made("details", "", {},
    made("summary", `${one.code} (${one.stage}, ${one.outcome})`),
    made("pre", JSON.stringify(one.evidence, null, 2), { class: "said" })));
  return items.length ? [made("h3", "What the rules found"), ...items] : [];
}

function windows(reservation) {
  if (!reservation) return [];
  const rupees = (paise) => amount(paise, "INR");
  const rows = reservation.windows.map((one) => made("li", `${one.scope} ${one.window}: ${rupees(one.reserved + one.committed)}`
    + ` before it${one.limit === null ? ", no limit" : `, of ${rupees(one.limit)}`}`, { class: "said" }));
  return [made("h3", `Budget: ${rupees(reservation.amount)} ${reservation.state}`), made("ul", "", {}, ...rows)];
}

function reviews(given) {
  const rows = given.map((one) => made("li", `${when(one.at)}: ${one.by} ${one.action}s: ${one.why} (${one.channel})`, { class: "said" }));
  return rows.length ? [made("h3", "Answers of people"), made("ul", "", {}, ...rows)] : [];
}

function events(story) {
  const items = story.items.map((one) => made("details", "", {},
    made("summary", `${when(one.at)}  ${one.type}`),
    made("p", one.id, { class: "weak" }),
    made("pre", JSON.stringify(one.data, null, 2), { class: "said" })));
  return [made("h3", "Every event, in the order of the log"), ...story.notes.map((note) => made("p", note)), ...items];
}

async function story(payout, outcome = null) {
  const path = `payouts/${encodeURIComponent(payout)}`;
  const [{ said }, { said: told }] = await Promise.all([ask("GET", path), ask("GET", `${path}/events`)]);
  if (payout !== wanted()) return; // the reader is elsewhere by now
  const decision = said.decision ? `${said.decision} ${said.reason}` : "not decided yet";
  at("payout").replaceChildren(
    ...(outcome ? [made("p", outcome, { class: "outcome", role: "status" })] : []),
    made("h2", `${amount(said.amount, said.currency)}: ${decision}`),
    facts([
      ["Payout", said.payout], ["State", said.state], ["Agent", `${said.agent} (${said.identity})`],
      ["Vendor's host", host(said.vendor_url)], ["URL, as written", said.vendor_url], ["All reasons", said.reasons.join(", ")], ["Account", said.account],
      ["Received", when(said.received_at)], ["Policy version", String(said.policy_version)],
      ["The bank says", said.bank_status], ["At the bank", said.bank_payout], ["Failure", said.failure],
    ]),
    ...(said.state === "held" ? [answerForm(said.payout)] : []),
    ...reviews(said.reviews), ...findings(said.findings), ...windows(said.reservation), ...events(told));
}

// ---- which page ----

function failed(problem) {
  tell(problem);
  if (problem.status === 401) page();
}

function wanted() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // no escapes of UTF-8
  }
}

async function page() {
  const signedIn = Boolean(sessionStorage.getItem(TOKEN));
  const payout = wanted();
  show("sign-in", !signedIn);
  show("sign-out", signedIn);
  show("find", signedIn);
  show("holds", signedIn && !payout);
  show("payout", signedIn && Boolean(payout));
  at("payout").replaceChildren();
  document.querySelector("#holds tbody").replaceChildren(); // what was true a page ago may not be any more
  if (!signedIn) return at("token").focus();
  document.title = `${payout || "Holds"} · streamproc`;
  try {
    await (payout ? story(payout) : holds());
    tell(null);
  } catch (problem) {
    failed(problem);
  }
}

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  tell(null);
  page();
});
at("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  tell(null);
  page();
});
at("find").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = encodeURIComponent(at("wanted").value.trim());
});
at("more").addEventListener("click", () => holds(following).catch(failed));
addEventListener("hashchange", () => { tell(null); page(); });
// Only the first page follows what happens: one that a person has asked more of must not jump under the hand.
setInterval(() => {
  const seen = document.querySelectorAll("#holds tbody tr").length;
  if (!document.hidden && !at("holds").hidden && seen <= PAGE) holds().then(() => tell(null), failed);
}, LOOK_AGAIN_MS);
page();
