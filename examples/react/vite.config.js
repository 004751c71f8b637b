import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

import { store } from "./store.js";

export default defineConfig({ plugins: [react(), store()] });
