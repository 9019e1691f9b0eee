"use strict";

// The server renders the page; this fetches it again and replaces the parts that differ.
const EVERY_MS = 2000;

async function refresh() {
  if (!document.hidden && getSelection().isCollapsed) {
    const gone = document.getElementById("gone");
    try {
      // Not location.href, which may contain a password: fetch() refuses such a URL.
      const answer = await fetch(location.origin + location.pathname, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll(".live")) {
        const other = page.getElementById(part.id);
        if (part.innerHTML !== other.innerHTML) part.replaceChildren(...other.childNodes);
      }
      gone.hidden = true;
    } catch {
      gone.hidden = false;
    }
  }
  setTimeout(refresh, EVERY_MS);
}

setTimeout(refresh, EVERY_MS);
