#!/bin/sh
# The `llm` command: models of yours under a name of yours, each prompt a turn of one session.
set -eu
export LLM_USER_PATH="${LLM_USER_PATH:-$HOME/.config/io.datasette.llm}"
mkdir -p "$LLM_USER_PATH"
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<END
- model_id: turnkeeper
  model_name: eliza
  api_base: $OPENAI_BASE_URL
  headers: {Authorization: "Bearer $OPENAI_API_KEY", Session-Id: llm}
END
llm -m turnkeeper "I want to learn to swim"
llm -m turnkeeper "I have no time" # not even `--continue`: the session remembers
