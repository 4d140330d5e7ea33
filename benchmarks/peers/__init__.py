"""specbench compared with other engines, on the same weights and token ids: transformers, llama.cpp, OpenVINO GenAI."""
