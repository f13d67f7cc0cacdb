"use strict";

const ask = async (place, fields) => {
  const response = await fetch(`${location.pathname}/${place}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(fields),
    credentials: "omit",
  });
  const answer = await response.json();
  if (!response.ok) {
    throw new Error(`${answer.sentence} ${answer.next_step}`);
  }
  return answer;
};

const sign = async (code) => ask("approval", { answer: await usedKey(await ask("options", { code })) });

const make = async () => ask("registration", { answer: await madeKey(await ask("options", {})) });

const line = (kind, text, style) => {
  const element = document.createElement(kind);
  element.textContent = text;
  element.className = style || "";
  return element;
};

const approved = ({ site, words }) => [
  line("h1", "Approved"),
  line("p", `The box goes on by itself and joins ${site}.`),
  line("p", `${site}'s operator sees these words, and compares them with those on the box:`),
  line("p", words, "words"),
];

const made = ({ site }) => [
  line("h1", "Your passkey is ready"),
  line("p", `It approves boxes of ${site}. You can close this page.`),
];

const plain = (error) =>
  error.name === "NotAllowedError" ? "The passkey was not used: it was cancelled, or took too long. Try again." : error.message;

const run = (form, work, show) => {
  const button = form.querySelector("button");
  const trouble = document.getElementById("trouble");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    trouble.hidden = true;
    try {
      const answer = await work();
      form.hidden = true;
      const done = document.getElementById("done");
      done.append(...show(answer));
      done.hidden = false;
    } catch (error) {
      trouble.textContent = plain(error);
      trouble.hidden = false;
      button.disabled = false;
    }
  });
};

const approval = document.getElementById("approval");
const passkey = document.getElementById("passkey");
if (approval) {
  run(approval, () => sign(document.getElementById("code").value), approved);
}
if (passkey) {
  run(passkey, make, made);
}
