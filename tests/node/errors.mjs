// What goes wrong, as the official SDK raises it, and what it sends again by itself.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { MODEL, all, client, eager, failure, test, textOf } from './sdk.mjs';

const ask = (more) => client.responses.create({ model: MODEL, input: 'hello', ...more });
const say = (more) =>
  client.chat.completions.create({
    model: MODEL,
    messages: [{ role: 'user', content: 'hello' }],
    ...more,
  });

test('a wrong parameter is named', async () => {
  for (const [call, param] of [
    [() => ask({ temperature: 'warm' }), 'temperature'],
    [() => ask({ no_such_thing: 1 }), 'no_such_thing'],
    [() => ask({ input: [{ role: 'user', content: 7 }] }), 'input[0].content'],
    [() => say({ n: 2 }), 'n'],
    [() => say({ temperature: 'warm' }), 'temperature'],
  ]) {
    const error = await failure(call());
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.type, 'invalid_request_error');
    assert.equal(error.param, param);
    assert.ok(error.requestID);
  }
});

test('what is not there', async () => {
  const model = await failure(ask({ model: 'nobody' }));
  assert.ok(model instanceof OpenAI.NotFoundError);
  assert.equal(model.code, 'model_not_found');
  const previous = await failure(ask({ previous_response_id: 'resp_0' }));
  assert.equal(previous.code, 'previous_response_not_found');
  const response = await failure(client.responses.retrieve('resp_0'));
  assert.ok(response instanceof OpenAI.NotFoundError);
});

test('who shows no key of ours', async () => {
  const stranger = new OpenAI({ apiKey: 'sk-wrong', maxRetries: 2 });
  const error = await failure(stranger.models.list());
  assert.ok(error instanceof OpenAI.AuthenticationError);
  assert.equal(error.code, 'invalid_api_key');
});

test('an outage of the provider stores one turn: the SDK does not send it again', async () => {
  const { eager: client, tries } = eager();
  const { id } = await client.conversations.create();
  tries.length = 0;
  const error = await failure(
    client.responses.create({ model: MODEL, input: 'fail', conversation: id }),
  );
  assert.ok(error instanceof OpenAI.InternalServerError);
  assert.equal(tries.length, 1);
  assert.deepEqual(textOf(await all(client.conversations.items.list(id))), ['fail']);
});

test('under an idempotency key it is sent again, and is the same turn', async () => {
  const { eager: client, tries } = eager();
  const { id } = await client.conversations.create();
  tries.length = 0;
  const error = await failure(
    client.responses.create(
      { model: MODEL, input: 'fail', conversation: id },
      { headers: { 'Idempotency-Key': 'node-1' } },
    ),
  );
  assert.ok(error instanceof OpenAI.InternalServerError);
  assert.equal(tries.length, 3);
  assert.equal(tries[2].get('x-stainless-retry-count'), '2');
  assert.deepEqual(textOf(await all(client.conversations.items.list(id))), ['fail']);
});

test('what was not stored is sent again, and succeeds', async () => {
  const { eager: client, tries } = eager();
  const made = await client.responses.create({ model: MODEL, input: 'fail once', store: false });
  assert.equal(made.output_text, 'Now it works.');
  assert.equal(tries.length, 2);
});

test('a busy conversation is told at once, and which it is', async () => {
  const { eager: client, tries } = eager();
  const { id } = await client.conversations.create();
  const running = await client.responses.create({
    model: MODEL,
    input: 'go on for ever',
    conversation: id,
    background: true,
  });
  tries.length = 0;
  const error = await failure(client.responses.create({ model: MODEL, input: 'hello', conversation: id }));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.code, 'conversation_locked');
  assert.equal(error.param, 'conversation');
  assert.equal(tries.length, 1);
  await client.responses.cancel(running.id);
});
