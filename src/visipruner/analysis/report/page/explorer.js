// Draws one sample and layer: token weights over the image, and the words of every layer.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const element = (id) => document.getElementById(id);
  const canvas = element("overlay"), brush = canvas.getContext("2d");
  const LONG_SIDE = 800;
  const RAMP = [[22, 24, 29], [106, 61, 42], [213, 94, 0], [240, 167, 58], [255, 243, 196]];
  const OUTLINE = "#7fd4ff";
  let picture = null, turn = 0;

  const sample = () => data.samples[Number(element("sample").value)];
  const layer = () => Number(element("layer").value);
  const shown = () => (document.querySelector("input[name=shown]:checked") || {}).value;
  const onlyKept = () => element("kept") !== null && element("kept").checked;

  function color(share) {
    const place = share * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[low].map((part, i) => Math.round(part + (RAMP[low + 1][i] - part) * (place - low)));
  }

  function bytes(map, tokens, at) {
    if (!map.bytes) map.bytes = Uint8Array.from(atob(map.data), (letter) => letter.charCodeAt(0));
    return map.bytes.subarray(at * tokens, (at + 1) * tokens);
  }

  // ---- the image with its tokens ----------------------------------------------------------------------------------

  function drawGrid(now, weights, marked) {
    const [rows, columns] = now.grid;
    const ratio = picture ? picture.naturalHeight / picture.naturalWidth : rows / columns;
    canvas.width = Math.round(ratio > 1 ? LONG_SIDE / ratio : LONG_SIDE);
    canvas.height = Math.round(ratio > 1 ? LONG_SIDE : LONG_SIDE * ratio);
    if (picture) brush.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const x = (column) => Math.round(canvas.width * column / columns);
    const y = (row) => Math.round(canvas.height * row / rows);
    const kept = onlyKept() && now.kept ? new Set(now.kept) : null;
    for (let token = 0; token < rows * columns; token++) {
      const row = Math.floor(token / columns), column = token % columns;
      const gone = kept !== null && !kept.has(token);
      const share = weights ? weights[token] / 255 : 0;
      const [red, green, blue] = gone ? [255, 255, 255] : color(share);
      const cover = gone ? 0.85 : picture ? 0.5 + 0.25 * share : 1;
      brush.fillStyle = `rgba(${red}, ${green}, ${blue}, ${weights || gone ? cover : 0})`;
      brush.fillRect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    }
    brush.strokeStyle = OUTLINE;
    brush.lineWidth = 4;
    for (const token of marked) {
      if (kept !== null && !kept.has(token)) continue;
      const row = Math.floor(token / columns), column = token % columns;
      brush.strokeRect(x(column) + 2, y(row) + 2, x(column + 1) - x(column) - 4, y(row + 1) - y(row) - 4);
    }
  }

  function drawBars(now, weights, marked) {
    canvas.width = LONG_SIDE;
    canvas.height = LONG_SIDE / 2;
    brush.fillStyle = "#f6f7f9";
    brush.fillRect(0, 0, canvas.width, canvas.height);
    const top = new Set(marked), kept = onlyKept() && now.kept ? new Set(now.kept) : null;
    const width = canvas.width / now.tokens;
    for (let token = 0; weights && token < now.tokens; token++) {
      if (kept !== null && !kept.has(token)) continue;
      const height = (canvas.height - 10) * weights[token] / 255;
      brush.fillStyle = top.has(token) ? "#d55e00" : "#0072b2";
      brush.fillRect(token * width, canvas.height - height, Math.max(width, 1), height);
    }
  }

  function caption(now, map) {
    const words = [];
    if (now.missing) words.push(now.missing);
    if (!now.grid) words.push("These visual tokens form no single grid (several images, or extra tokens), so they stand in their order, top tokens in orange.");
    if (map) {
      const what = shown() === "attention" ? "attention weight of the last prompt row, heads averaged" : "‖c_j‖, what a token brings to the last row's attention output";
      words.push(`Color: ${what}, relative to this layer's largest; ${now.grid ? "outlined: " : ""}the ${map.top[layer()].length} largest.`);
      if (shown() === "attention" && now.mass) words.push(`On all visual tokens together: ${(100 * now.mass[layer()]).toFixed(1)} %.`);
    }
    if (now.kept && onlyKept()) words.push("White: tokens that the proposed filter drops, chosen from the dense run's influence.");
    if (now.grid && picture) words.push("The grid is laid over the whole image; where a processor crops or pads, cells lie off.");
    return words.join(" ");
  }

  // Scrolls the table only, never the page.
  function showRow(row) {
    const frame = row.closest(".tall"), head = frame.querySelector("thead").offsetHeight;
    const here = row.getBoundingClientRect(), around = frame.getBoundingClientRect();
    if (here.top >= around.top + head && here.bottom <= around.bottom) return;
    frame.scrollTop += here.top - around.top - (frame.clientHeight + head - here.height) / 2;
  }

  function draw() {
    const now = sample(), map = now[shown()], at = layer();
    element("layer-name").textContent = at;
    const weights = map ? bytes(map, now.tokens, at) : null;
    (now.grid ? drawGrid : drawBars)(now, weights, map ? map.top[at] : []);
    element("most").textContent = map ? String(map.most[at]) : "";
    element("view-caption").textContent = caption(now, map);
    for (const row of document.querySelectorAll("#lens-rows tr")) {
      const isNow = Number(row.dataset.layer) === at;
      row.classList.toggle("now", isNow);
      if (isNow) showRow(row);
    }
  }

  // ---- words --------------------------------------------------------------------------------------------------------

  const visible = (word) => word.replace(/\n/g, "↵").replace(/\t/g, "⇥").trim() || "␣";

  function cell(row, ...parts) {
    const made = row.insertCell();
    made.append(...parts);
    return made;
  }

  function strong(text) {
    const made = document.createElement("b");
    made.textContent = text;
    return made;
  }

  function fillWords(now) {
    const body = element("lens-rows");
    if (!body || !now.lens) return;
    body.replaceChildren();
    now.lens.words.forEach((words, at) => {
      const row = body.insertRow();
      row.dataset.layer = at;
      row.addEventListener("click", () => { element("layer").value = at; draw(); });
      cell(row, at === now.lens.leads ? strong(`${at} ◂`) : String(at));
      const sure = now.lens.sure[at] === null ? "" : ` ${(100 * now.lens.sure[at]).toFixed(0)} %`;
      cell(row, strong(visible(words[0])), `${sure} · ${words.slice(1).map(visible).join(" · ")}`);
      const bar = document.createElement("span"), share = now.lens.answer[at] || 0;
      bar.className = "bar";
      bar.style.width = `${(2 * share).toFixed(2)}rem`;
      cell(row, bar, `${(100 * share).toFixed(0)} %`).style.whiteSpace = "nowrap";
      const head = now.lens.heads[at];
      cell(row, `${head.head}: ${head.words.map(visible).join(" · ")}`);
    });
  }

  function fillExchange(now) {
    const judged = now.right === null ? "" : now.right ? " (right)" : ` (wrong, should be “${now.answers[0]}”)`;
    const small = document.createElement("small");
    small.textContent = [now.type, now.file].filter(Boolean).join(", ");
    element("exchange").replaceChildren(`${now.question} `, strong(now.answer), judged, small);
  }

  function choose() {
    const now = sample(), mine = ++turn;
    fillExchange(now);
    fillWords(now);
    picture = null;
    if (!now.image) return draw();
    const loading = new Image();
    loading.onload = () => { if (mine === turn) { picture = loading; draw(); } };
    loading.src = now.image;
  }

  element("sample").addEventListener("change", choose);
  for (const control of document.querySelectorAll("#layer, #kept, input[name=shown]")) control.addEventListener("input", draw);
  choose();
})();
