// The daemon's API. Where it wants a token (the [tcp] listener), the page asks for it once per tab.

const KEY = "kuproxy-token";

export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Of something that a click began: the loop's next look will tell what is wrong, so this one need not. */
export function quietly(promise) {
  promise.catch((error) => {
    if (!(error instanceof Refusal) && error.name !== "AbortError") throw error;
  });
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token);
}

/** `/v1/x?a=b` of a path and an object; empty values are left out. */
export function target(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function ask(path, query, signal) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(target(path, query), { headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "the daemon does not answer");
  }
  if (!response.ok) {
    let text = response.statusText;
    try {
      text = (await response.json()).error;
    } catch { /* no reason was given */ }
    throw new Refusal(response.status, text);
  }
  return response;
}

export async function getJson(path, query, signal) {
  return (await ask(path, query, signal)).json();
}

export async function getText(path, query, signal) {
  return (await ask(path, query, signal)).text();
}
