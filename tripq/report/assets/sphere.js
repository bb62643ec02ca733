// Turns the spheres of gradient directions, all together. The first picture is in the page; the
// axes are those of seen_from in sphere.py.
"use strict";
(() => {
  const STEP = 5; // degrees, of an arrow key
  const PIXELS = 0.5; // degrees for each, of the pointer
  const group = document.querySelector(".spheres");
  if (group === null) return;
  let azimuth = Number(group.dataset.azimuth);
  let elevation = Number(group.dataset.elevation);
  const points = Array.from(group.querySelectorAll("[data-at]"), (element) => [
    element,
    element.dataset.at.split(",").map(Number),
    element.tagName === "text" ? ["x", "y"] : ["cx", "cy"],
  ]);

  const turn = (sideways, upwards) => {
    azimuth = (azimuth + sideways) % 360;
    elevation = Math.max(-90, Math.min(90, elevation + upwards));
    const [a, e] = [azimuth, elevation].map((degrees) => (degrees * Math.PI) / 180);
    const [sa, ca, se, ce] = [Math.sin(a), Math.cos(a), Math.sin(e), Math.cos(e)];
    for (const [element, [x, y, z], [right, down]] of points) {
      element.setAttribute(right, -ca * x - sa * y);
      element.setAttribute(down, -(se * sa * x - se * ca * y + ce * z));
      element.classList.toggle("back", -ce * sa * x + ce * ca * y + se * z < 0);
    }
  };

  const keys = {
    ArrowLeft: [STEP, 0],
    ArrowRight: [-STEP, 0],
    ArrowUp: [0, STEP],
    ArrowDown: [0, -STEP],
  };
  for (const picture of group.querySelectorAll("svg")) {
    picture.addEventListener("pointerdown", (event) => picture.setPointerCapture(event.pointerId));
    picture.addEventListener("pointermove", (event) => {
      if (!picture.hasPointerCapture(event.pointerId)) return;
      turn(-PIXELS * event.movementX, PIXELS * event.movementY);
    });
    picture.addEventListener("keydown", (event) => {
      if (!(event.key in keys)) return;
      event.preventDefault();
      turn(...keys[event.key]);
    });
  }
})();
