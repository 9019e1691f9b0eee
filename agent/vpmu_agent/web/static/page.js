"use strict";

// The server makes the page; this asks for it again and takes what differs.
const EVERY_MS = 2000;

async function renew() {
  if (!document.hidden && getSelection().isCollapsed) {
    const gone = document.getElementById("gone");
    try {
      // Not location.href: there may be a password in it, and fetch() takes no such address.
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
  setTimeout(renew, EVERY_MS);
}

setTimeout(renew, EVERY_MS);
