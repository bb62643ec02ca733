// The interactive view of the scan, drawn by NiiVue; its volumes are inside the page.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const status = find("viewer-status");
  const read = (id) => JSON.parse(find(id).textContent);

  if (document.createElement("canvas").getContext("webgl2") === null) {
    status.textContent =
      "The interactive view needs WebGL 2, which this browser does not offer. " +
      "The rest of this page works without it.";
    return;
  }

  const TYPES = niivue.SLICE_TYPE;
  const VIEWS = {
    multiplanar: TYPES.MULTIPLANAR,
    axial: TYPES.AXIAL,
    coronal: TYPES.CORONAL,
    sagittal: TYPES.SAGITTAL,
    render: TYPES.RENDER,
  };
  const HALF_STEP = 0.5 / 255; // rounding of the volume: what reaches the threshold is shown
  const CROSSHAIR_WIDTH = 1; // mm: of less than a pixel, some lines would not be drawn
  const CROSSHAIR_GAP = 8; // mm
  const COLOURS = "tripq";
  // Colours from 0 on, and nothing below the lowest that is shown. NiiVue 0.69 calls this type 1 and
  // draws it for type 2.
  const TRANSPARENT_BELOW = 2;

  const load = (volumes, name, colormap) =>
    niivue.NVImage.loadFromBase64({
      base64: volumes[name],
      name: `${name}.nii.gz`,
      colormap,
      cal_min: 0,
      cal_max: 1,
    });

  const colourMap = (colours) => {
    const channel = (index) => colours.map((colour) => colour[index]);
    const place = (_, index) => Math.round((255 * index) / (colours.length - 1));
    return { R: channel(0), G: channel(1), B: channel(2), A: channel(3), I: colours.map(place) };
  };

  const start = async () => {
    const settings = read("viewer-settings");
    const volumes = read("volumes");
    const viewer = new niivue.Niivue({
      logLevel: "error",
      dragAndDropEnabled: false,
      scrollRequiresFocus: true, // the wheel scrolls the page until the view is clicked
      isRadiologicalConvention: true,
      isNearestInterpolation: true,
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      multiplanarPadPixels: 4,
      sagittalNoseLeft: true,
      showAllOrientationMarkers: true,
      fontColor: [0.75, 0.75, 0.75, 1],
      crosshairWidthUnit: "mm",
      crosshairGap: CROSSHAIR_GAP,
      crosshairColor: [0.34, 0.71, 0.91, 0.8],
    });
    viewer.onLocationChange = ({ mm, values }) => {
      const [x, y, z] = Array.from(mm, (value) => value.toFixed(0).replace("-", "−"));
      const probability = values.at(-1).value.toFixed(2);
      find("viewer-location").textContent =
        `x ${x}, y ${y}, z ${z} mm: probability ${probability}`;
    };
    find("viewer").hidden = false;
    await viewer.attachToCanvas(find("viewer-canvas"));
    viewer.addColormap(COLOURS, colourMap(settings.colours));
    const backgrounds = {
      weighted: await load(volumes, "weighted", "gray"),
      b0: await load(volumes, "b0", "gray"),
    };
    const background = await load(volumes, "weighted", "gray");
    const probability = await load(volumes, "probability", COLOURS);
    probability.colormapType = TRANSPARENT_BELOW;
    viewer.addVolume(background);
    viewer.addVolume(probability);

    const go = (place) => {
      viewer.scene.crosshairPos = viewer.mm2frac(place, 0, true); // true: in world axes, if oblique
      viewer.createOnLocationChange();
      viewer.drawScene();
    };
    const controls = find("viewer-controls").elements;
    controls.from.value = settings.threshold;
    const apply = () => {
      background.img = backgrounds[controls.background.value].img;
      const from = Number(controls.from.value);
      probability.cal_min = Math.max(from - HALF_STEP, HALF_STEP);
      probability.opacity = Number(controls.opacity.value);
      controls.from_value.value = from.toFixed(2);
      viewer.opts.crosshairWidth = controls.crosshair.checked ? CROSSHAIR_WIDTH : 0;
      viewer.setInterpolation(!controls.smooth.checked);
      viewer.setSliceType(VIEWS[controls.view.value]);
      viewer.updateGLVolume();
    };
    find("viewer-controls").addEventListener("input", apply);
    find("viewer-controls").addEventListener("submit", (event) => event.preventDefault());
    apply();
    go(settings.start);

    for (const cell of document.querySelectorAll("th.show, td.show")) cell.hidden = false;
    for (const button of document.querySelectorAll("button[data-mm]")) {
      button.addEventListener("click", () => {
        go(button.dataset.mm.split(",").map(Number));
        find("viewer-section").scrollIntoView({ block: "start" });
      });
    }
    status.hidden = true;
    document.body.dataset.viewer = "ready";
  };

  start().catch((error) => {
    status.textContent = `The interactive view did not start (${error.message}). ` +
      "The rest of this page works without it.";
    status.hidden = false;
    find("viewer").hidden = true;
  });
})();
