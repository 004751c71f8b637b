// The same from CommonJS.

import windlass = require("windlass");

void windlass.connect("https://locks.example.com").then((locks) => locks.request("deploy", (lock) => lock.name));
