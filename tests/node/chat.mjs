// Models and chat completions, by the official SDK: made, streamed, parsed, run, stored.

import assert from 'node:assert/strict';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import OpenAI from 'openai';
import { z } from 'zod';
import { MODEL, all, client, failure, test, textOf } from './sdk.mjs';

const completions = client.chat.completions;
const ask = (content, more = {}) =>
  completions.create({ model: MODEL, messages: [{ role: 'user', content }], ...more });

test('models are listed and read', async () => {
  const models = await all(client.models.list());
  assert.ok(models.some((model) => model.id === MODEL && model.object === 'model'));
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  const error = await failure(client.models.retrieve('nobody/nothing'));
  assert.ok(error instanceof OpenAI.NotFoundError);
});

test('a completion', async () => {
  const made = await ask('hello');
  assert.equal(made.object, 'chat.completion');
  assert.equal(made.choices[0].message.content, 'You said: hello');
  assert.equal(made.choices[0].finish_reason, 'stop');
  assert.equal(made.usage.total_tokens, made.usage.prompt_tokens + made.usage.completion_tokens);
});

test('a stream, with its usage at the end', async () => {
  const chunks = await all(
    await ask('hello', { stream: true, stream_options: { include_usage: true } }),
  );
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
  assert.equal(text, 'You said: hello');
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, 3);
  assert.equal(chunks.at(-2).choices[0].finish_reason, 'stop');
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
});

test('the streaming helper', async () => {
  const stream = completions.stream({
    model: MODEL,
    messages: [{ role: 'user', content: 'hello' }],
    stream_options: { include_usage: true },
  });
  const snapshots = [];
  stream.on('content', (_, snapshot) => snapshots.push(snapshot));
  assert.equal(await stream.finalContent(), 'You said: hello');
  assert.equal(snapshots.at(-1), 'You said: hello');
  assert.equal((await stream.totalUsage()).completion_tokens, 3);
  assert.equal((await stream.finalChatCompletion()).choices[0].finish_reason, 'stop');
});

const Weather = z.object({ town: z.string(), degrees: z.number() });

test('structured output, whole and streamed', async () => {
  const asked = {
    model: MODEL,
    messages: [{ role: 'user', content: 'say it in JSON' }],
    response_format: zodResponseFormat(Weather, 'weather'),
  };
  const expected = { town: 'Rome', degrees: 21 };
  assert.deepEqual((await completions.parse(asked)).choices[0].message.parsed, expected);
  const streamed = await completions.stream(asked).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, expected);
});

for (const stream of [false, true]) {
  test(`two tools at once are run, and their results told; stream: ${stream}`, async () => {
    const asked = [];
    const tool = zodFunction({
      name: 'weather',
      parameters: z.object({ town: z.string() }),
      function: ({ town }) => {
        asked.push(town);
        return `fine in ${town}`;
      },
    });
    const runner = completions.runTools({
      model: MODEL,
      messages: [{ role: 'user', content: 'call two tools' }],
      tools: [tool],
      stream,
    });
    assert.equal(await runner.finalContent(), 'I was told: fine in Rome; fine in Oslo');
    assert.deepEqual(asked.toSorted(), ['Oslo', 'Rome']);
  });
}

test('a refusal, and a reply that was cut', async () => {
  const refused = await ask('refuse');
  assert.equal(refused.choices[0].message.refusal, 'I will not.');
  assert.equal(refused.choices[0].message.content, null);
  assert.equal((await ask('stop at the length')).choices[0].finish_reason, 'length');
});

test('thoughts are told where the model tells them', async () => {
  const chunks = await all(await ask('think', { stream: true }));
  const deltas = chunks.map((chunk) => chunk.choices[0].delta);
  assert.equal(deltas.map((delta) => delta.reasoning_content ?? '').join(''), 'Let me see.');
  assert.equal(deltas.map((delta) => delta.content ?? '').join(''), 'Yes.');
});

test('images are passed on', async () => {
  const url = 'data:image/png;base64,iVBORw0KGgo=';
  const content = [
    { type: 'text', text: 'count pictures' },
    { type: 'image_url', image_url: { url } },
    { type: 'image_url', image_url: { url: 'https://example.org/a.png', detail: 'low' } },
  ];
  assert.equal((await ask(content)).choices[0].message.content, '2');
});

test('what breaks off in the middle is raised', async () => {
  const error = await failure(ask('break off', { stream: true }).then(all));
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.type, 'server_error');
});

test('a stored completion is read, changed, deleted', async () => {
  const made = await ask('hello', { store: true, metadata: { a: 'b' } });
  const read = await completions.retrieve(made.id);
  assert.deepEqual(read.choices, made.choices);
  const messages = await all(completions.messages.list(made.id));
  assert.deepEqual(messages.map((message) => message.content), ['hello']);
  const changed = await completions.update(made.id, { metadata: { c: 'd' } });
  assert.deepEqual(changed.metadata, { c: 'd' });
  assert.equal((await completions.delete(made.id)).deleted, true);
  const error = await failure(completions.retrieve(made.id));
  assert.ok(error instanceof OpenAI.NotFoundError);
});

for (const order of ['asc', 'desc']) {
  test(`stored completions page by page, ${order}, while more are made`, async () => {
    const metadata = { of: `paging-${order}` };
    const store = async () => (await ask('hello', { store: true, metadata })).id;
    const made = [];
    for (let n = 0; n < 5; n++) made.push(await store());
    const found = [];
    let late;
    for await (const one of completions.list({ limit: 2, order, metadata })) {
      found.push(one.id);
      if (found.length === 3) late = await store();
    }
    assert.deepEqual(found, order === 'asc' ? [...made, late] : made.reverse());
  });
}

test('what is said in a session is a conversation, each message once', async () => {
  const messages = [{ role: 'user', content: 'one' }];
  const metadata = { session_id: 'node-chat' };
  const say = () => completions.create({ model: MODEL, messages, metadata }).withResponse();
  const { data, response } = await say();
  messages.push(data.choices[0].message, { role: 'user', content: 'two' });
  await say();
  const id = `conv_${response.headers.get('session-id').slice(1)}`;
  const items = await all(client.conversations.items.list(id, { order: 'asc' }));
  assert.deepEqual(textOf(items), ['one', 'You said: one', 'two', 'You said: two']);
});
