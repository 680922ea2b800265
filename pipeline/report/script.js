"use strict";
// Turns each exhibit's pictures into a viewer: before and after, separated by a movable line, with a common zoom.
(() => {
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function makeViewer(exhibit) {
    const viewer = document.getElementById("viewer").content.firstElementChild.cloneNode(true);
    const find = (selector) => viewer.querySelector(selector);
    const [scroller, frame, under, over, divider, stage] =
      [".scroller", ".frame", ".under", ".over", ".divider", ".stage"].map(find);
    const before = exhibit.querySelector(".before img");
    const [width, height] = ["width", "height"].map((name) => Number(before.getAttribute(name))); // not as laid out
    const rights = [...exhibit.querySelectorAll(".after, .deviation")];
    const title = exhibit.querySelector("h3").textContent;
    let split = 50; // per cent of the visible width
    let zoom = 1;

    function place() {
      const edge = (split / 100) * scroller.clientWidth;
      const inside = clamp(edge + scroller.scrollLeft, 0, frame.offsetWidth);
      over.style.clipPath = `inset(0 0 0 ${inside}px)`;
      divider.style.left = `${edge}px`;
    }

    function setSplit(value) {
      split = clamp(value, 0, 100);
      divider.setAttribute("aria-valuenow", String(Math.round(split)));
      divider.setAttribute("aria-valuetext", `${Math.round(split)} per cent before`);
      place();
    }

    function setZoom(value) {
      const x = (scroller.scrollLeft + scroller.clientWidth / 2) / Math.max(1, frame.offsetWidth);
      const y = (scroller.scrollTop + scroller.clientHeight / 2) / Math.max(1, frame.offsetHeight);
      zoom = value;
      frame.style.width = `${width * zoom}px`;
      frame.style.height = `${height * zoom}px`;
      scroller.scrollLeft = x * frame.offsetWidth - scroller.clientWidth / 2;
      scroller.scrollTop = y * frame.offsetHeight - scroller.clientHeight / 2;
      for (const button of viewer.querySelectorAll("[data-zoom]")) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.zoom) === zoom));
      }
      place();
    }

    function show(picture) {
      const label = picture.dataset.name;
      over.src = picture.querySelector("img").src;
      over.alt = `${label} of ${title}, right of the line`;
      find(".right").textContent = label;
      for (const button of find(".choices").children) {
        button.setAttribute("aria-pressed", String(button.picture === picture));
      }
    }

    for (const picture of rights.length > 1 ? rights : []) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = picture.dataset.name;
      button.picture = picture;
      button.addEventListener("click", () => show(picture));
      find(".choices").append(button);
    }
    for (const button of viewer.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => setZoom(Number(button.dataset.zoom)));
    }
    under.src = before.src;
    under.alt = `Ordinary decoding of ${title}, left of the line`;
    scroller.setAttribute("aria-label", `${title}, before and after; + and − zoom`);

    divider.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 2;
      const target = {
        ArrowLeft: split - step, ArrowDown: split - step, ArrowRight: split + step, ArrowUp: split + step,
        PageDown: split - 10, PageUp: split + 10, Home: 0, End: 100,
      }[event.key];
      if (target === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      setSplit(target);
    });
    stage.addEventListener("keydown", (event) => {
      const factor = { "+": 2, "=": 2, "-": 0.5, "−": 0.5 }[event.key];
      if (factor === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      setZoom(clamp(zoom * factor, 1, 8));
    });
    drag(divider, (event) => {
      const box = scroller.getBoundingClientRect();
      setSplit((100 * (event.clientX - box.left)) / scroller.clientWidth);
    });
    // Touch input pans by scrolling; a mouse drags.
    drag(scroller, (event) => scroller.scrollBy(-event.movementX, -event.movementY), "mouse");
    scroller.addEventListener("scroll", place, { passive: true });
    new ResizeObserver(place).observe(scroller);

    exhibit.querySelector(".images").prepend(viewer);
    show(rights[0]);
    const room = exhibit.querySelector(".images").clientWidth;
    setZoom(2 * width <= room && 2 * height <= 640 ? 2 : 1); // small images are hard to compare at 1×
    setSplit(50);
  }

  function drag(element, move, kind) {
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || (kind && event.pointerType !== kind)) return;
      element.setPointerCapture(event.pointerId);
      element.classList.add("dragging");
      event.preventDefault();
      element.focus({ preventScroll: true });
    });
    element.addEventListener("pointermove", (event) => {
      if (element.hasPointerCapture(event.pointerId)) move(event);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      element.addEventListener(end, () => element.classList.remove("dragging"));
    }
  }

  for (const exhibit of document.querySelectorAll(".exhibit")) makeViewer(exhibit);
  document.documentElement.classList.add("js");
})();
