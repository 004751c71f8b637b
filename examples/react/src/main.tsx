import { createRoot } from "react-dom/client";
import { connect } from "windlass";

import { Note } from "./Note";

const url = import.meta.env.VITE_WINDLASS_URL ?? "http://127.0.0.1:7420/examples";
const name = new URLSearchParams(location.search).get("name") ?? `Guest ${Math.ceil(Math.random() * 99)}`;

const locks = await connect(url, { owner: name });
createRoot(document.getElementById("root")!).render(<Note locks={locks} name={name} />);
