"use strict";

const page = document.body.dataset;

const fromHex = (text) => Uint8Array.from(text.match(/../g) || [], (pair) => parseInt(pair, 16));

const toHex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const ask = async (place, content) => {
  let response;
  try {
    response = await fetch(place, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": page.token },
      body: JSON.stringify(content),
    });
  } catch {
    throw new Error(page.lost);
  }
  const answer = await response.json();
  if (response.status === 401) {
    location.assign(answer.to);
  }
  if (!response.ok) {
    throw new Error(`${answer.sentence} ${answer.next_step}`);
  }
  return answer;
};

// What the page shows is what the key signs: the text's own fingerprint must be the challenge.
const sign = async (form) => {
  const { sign: place, challenge, rp, credential } = form.dataset;
  const shown = new TextEncoder().encode(document.getElementById("payload").textContent);
  if (toHex(await crypto.subtle.digest("SHA-256", shown)) !== challenge) {
    throw new Error(page.differs);
  }
  const asked = {
    challenge: fromHex(challenge),
    rpId: rp,
    allowCredentials: [{ type: "public-key", id: fromHex(credential) }],
    userVerification: "required",
    timeout: 120000,
  };
  return ask(place, { answer: told(await navigator.credentials.get({ publicKey: asked })) });
};

const makeKey = async (form) => {
  const fields = { steward: form.elements.steward.value, person: form.elements.person.value };
  return ask(form.dataset.to, { answer: await madeKey(await ask(form.dataset.key, fields)) });
};

const signIn = async (form) => ask(form.dataset.to, { answer: await usedKey(await ask(form.dataset.door, {})) });

const inWords = (error) => (error.name === "NotAllowedError" ? page.cancelled : error.message);

const attend = (form, work) => {
  const button = form.querySelector("button");
  const trouble = form.querySelector(".trouble");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    trouble.hidden = true;
    try {
      if (!navigator.credentials || !window.PublicKeyCredential) {
        throw new Error(page.unsupported);
      }
      location.assign((await work(form)).to);
    } catch (error) {
      trouble.textContent = inWords(error);
      trouble.hidden = false;
      button.disabled = false;
      button.focus();
    }
  });
};

document.querySelectorAll("[data-sign]").forEach((form) => attend(form, sign));
document.querySelectorAll("[data-key]").forEach((form) => attend(form, makeKey));
document.querySelectorAll("[data-door]").forEach((form) => attend(form, signIn));

// The choice of a language needs no button where there is a script; without one the button does it.
document.querySelectorAll("#language").forEach((choice) => {
  choice.form.querySelector("button").hidden = true;
  choice.addEventListener("change", () => choice.form.submit());
});

const live = document.querySelector("[data-live]");
const pause = document.getElementById("pause");

// A document is fetched as such: no text becomes HTML here, which the page's policy would not allow either.
const refresh = () => {
  if (document.hidden || pause.getAttribute("aria-pressed") === "true" || live.contains(document.activeElement)) {
    return;
  }
  const request = new XMLHttpRequest();
  request.open("GET", location.href);
  request.setRequestHeader("x-live", "1");
  request.responseType = "document";
  request.timeout = 10000;
  request.onload = () => {
    if (request.status !== 200 || !request.response) {
      return;
    }
    const fresh = request.response.querySelector("[data-live]");
    if (!fresh) {
      location.reload(); // the session is over: the door
      return;
    }
    if (fresh.textContent === live.textContent) {
      return;
    }
    const open = [...live.querySelectorAll("details")].map((each) => each.open);
    live.replaceChildren(...document.adoptNode(fresh).childNodes);
    live.querySelectorAll("details").forEach((each, place) => {
      each.open = open[place] || false;
    });
  };
  request.send();
};

if (live) {
  const label = () => {
    const stopped = pause.getAttribute("aria-pressed") === "true";
    pause.textContent = stopped ? pause.dataset.off : pause.dataset.on;
  };
  pause.hidden = false;
  label();
  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(pause.getAttribute("aria-pressed") !== "true"));
    label();
  });
  setInterval(refresh, Number(live.dataset.live));
}
