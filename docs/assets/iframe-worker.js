// The search of these pages is a worker, which browsers do not start for a page that is read from a disk. There its
// script runs in a hidden frame instead.
"use strict";
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(address) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.frame = frame.contentWindow;
    this.frame.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
    this.started = new Promise(resolve => {
      const script = frame.contentDocument.createElement("script");
      script.src = address;
      script.onload = resolve;
      frame.contentDocument.body.append(script);
    });
  }

  postMessage(data) {
    this.started.then(() => this.frame.dispatchEvent(new MessageEvent("message", {data})));
  }
};
