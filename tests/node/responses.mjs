// Responses, by the official SDK: made, streamed, parsed, chained, followed again, cancelled.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { ResponsesToolRunner } from 'openai/helpers/responses-tool-runner';
import { zodResponsesFunction, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { MODEL, all, client, failure, test, textOf, weather } from './sdk.mjs';

const { responses } = client;
const ask = (input, more = {}) => responses.create({ model: MODEL, input, ...more });
const numbers = (events) => events.map((event) => event.sequence_number);
const upTo = (count, from = 0) => Array.from({ length: count - from }, (_, n) => from + n);

test('a response', async () => {
  const made = await ask('hello');
  assert.equal(made.output_text, 'You said: hello');
  assert.equal(made.status, 'completed');
  assert.equal(made.usage.total_tokens, made.usage.input_tokens + made.usage.output_tokens);
  assert.deepEqual(await responses.retrieve(made.id), made);
});

test('a chain, and a fork of it', async () => {
  const first = await ask('count messages');
  assert.equal(first.output_text, '1');
  const second = await ask('count messages', { previous_response_id: first.id });
  assert.equal(second.output_text, '3');
  const another = await ask('count messages', { previous_response_id: first.id });
  assert.equal(another.output_text, '3');
  const third = await ask('count messages', { previous_response_id: second.id });
  assert.equal(third.output_text, '5');
});

test('a stream, numbered from 0', async () => {
  const events = await all(await ask('hello', { stream: true }));
  assert.deepEqual(numbers(events), upTo(events.length));
  assert.equal(events[0].type, 'response.created');
  assert.equal(events.at(-1).type, 'response.completed');
  const deltas = events.filter((event) => event.type === 'response.output_text.delta');
  assert.equal(deltas.map((event) => event.delta).join(''), 'You said: hello');
});

test('the streaming helper', async () => {
  const stream = responses.stream({ model: MODEL, input: 'hello' });
  const snapshots = [];
  stream.on('response.output_text.delta', (event) => snapshots.push(event.snapshot));
  const final = await stream.finalResponse();
  assert.equal(snapshots.at(-1), 'You said: hello');
  assert.equal(final.output_text, 'You said: hello');
});

test('structured output, whole and streamed', async () => {
  const format = zodTextFormat(z.object({ town: z.string(), degrees: z.number() }), 'weather');
  const asked = { model: MODEL, input: 'say it in JSON', text: { format } };
  const expected = { town: 'Rome', degrees: 21 };
  assert.deepEqual((await responses.parse(asked)).output_parsed, expected);
  assert.deepEqual((await responses.stream(asked).finalResponse()).output_parsed, expected);
});

test('two tools at once, their results, and what was made of them', async () => {
  const tool = zodResponsesFunction({
    name: 'weather',
    parameters: z.object({ town: z.string() }),
  });
  const asked = { model: MODEL, input: 'call two tools', tools: [tool] };
  const calls = (await responses.parse(asked)).output;
  assert.deepEqual(
    calls.map((call) => [call.type, call.parsed_arguments.town]),
    [['function_call', 'Rome'], ['function_call', 'Oslo']],
  );
  const events = [];
  const stream = responses.stream(asked);
  stream.on('response.function_call_arguments.delta', (event) => events.push(event.snapshot));
  const final = await stream.finalResponse();
  assert.deepEqual(events.filter((text) => text.endsWith('}')), ['{"town":"Rome"}', '{"town":"Oslo"}']);
  const results = final.output.map(({ call_id, parsed_arguments }) => ({
    type: 'function_call_output',
    call_id,
    output: `fine in ${parsed_arguments.town}`,
  }));
  const told = await ask(results, { previous_response_id: final.id });
  assert.equal(told.output_text, 'I was told: fine in Rome; fine in Oslo');
});

for (const stream of [false, true]) {
  test(`the runner of tools, which sends all of it again; stream: ${stream}`, async () => {
    const runner = new ResponsesToolRunner({
      functions: [{ tool: weather, execute: ({ town }) => `fine in ${town}` }],
    });
    const final = await runner.run(client, { model: MODEL, input: 'call two tools' }, { stream });
    assert.equal(final.output_text, 'I was told: fine in Rome; fine in Oslo');
  });
}

test('every stored response is followed again, from any event on', async () => {
  const made = await ask('hello');
  const whole = await all(await responses.retrieve(made.id, { stream: true }));
  assert.deepEqual(whole.at(-1).response.output, made.output);
  for (const event of whole) {
    const starting_after = event.sequence_number;
    const rest = await all(await responses.retrieve(made.id, { stream: true, starting_after }));
    assert.deepEqual(rest, whole.slice(starting_after + 1));
  }
  const heard = [];
  const helper = responses.stream({ response_id: made.id, starting_after: 5 });
  helper.on('event', (event) => heard.push(event.sequence_number));
  assert.equal((await helper.finalResponse()).output_text, 'You said: hello');
  assert.deepEqual(heard, upTo(whole.length, 6));
});

test('a stream that was left is gone on with while it is made, and cancelled', async () => {
  const seen = [];
  for await (const event of await ask('go on for ever', { stream: true })) {
    seen.push(event);
    if (event.type === 'response.in_progress') break; // hangs up
  }
  const { id } = seen[0].response;
  assert.equal((await responses.retrieve(id)).status, 'in_progress');
  const starting_after = seen.at(-1).sequence_number;
  for await (const event of await responses.retrieve(id, { stream: true, starting_after })) {
    seen.push(event);
    if (event.delta?.endsWith('on')) {
      assert.equal((await responses.cancel(id)).status, 'cancelled');
    }
  }
  assert.deepEqual(numbers(seen), upTo(seen.length));
  const read = await responses.retrieve(id);
  assert.equal(read.status, 'cancelled');
  assert.equal(read.output_text, 'On and on');
  assert.equal((await responses.cancel(id)).status, 'cancelled');
});

test('in the background: polled, cancelled', async () => {
  const begun = await ask('go on for ever', { background: true });
  assert.ok(['queued', 'in_progress'].includes(begun.status));
  await responses.cancel(begun.id);
  assert.equal((await responses.retrieve(begun.id)).status, 'cancelled');
  let quick = await ask('hello', { background: true });
  while (['queued', 'in_progress'].includes(quick.status)) {
    quick = await responses.retrieve(quick.id);
  }
  assert.equal(quick.output_text, 'You said: hello');
});

test('what is over cannot be cancelled', async () => {
  const error = await failure(ask('hello').then(({ id }) => responses.cancel(id)));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.match(error.message, /Cannot cancel a completed response/);
});

test('deleted, and then not found', async () => {
  const made = await ask('hello');
  await responses.delete(made.id);
  for (const call of ['retrieve', 'delete', 'cancel']) {
    assert.ok((await failure(responses[call](made.id))) instanceof OpenAI.NotFoundError);
  }
});

for (const order of ['asc', 'desc']) {
  test(`input items page by page, ${order}`, async () => {
    const said = ['a', 'b', 'c', 'd', 'e'];
    const input = said.map((content) => ({ role: 'user', content }));
    const made = await ask(input);
    const items = await all(responses.inputItems.list(made.id, { limit: 2, order }));
    assert.deepEqual(textOf(items), order === 'asc' ? said : said.toReversed());
  });
}

test('what is not stored is not there', async () => {
  const made = await ask('hello', { store: false });
  assert.equal(made.output_text, 'You said: hello');
  assert.ok((await failure(responses.retrieve(made.id))) instanceof OpenAI.NotFoundError);
});

test('incomplete, refused, thought about', async () => {
  const cut = await ask('stop at the length');
  assert.equal(cut.status, 'incomplete');
  assert.equal(cut.incomplete_details.reason, 'max_output_tokens');
  const [refused] = (await ask('refuse')).output;
  assert.deepEqual(refused.content, [{ type: 'refusal', refusal: 'I will not.' }]);
  const [reasoning, message] = (await ask('think')).output;
  assert.equal(reasoning.type, 'reasoning');
  assert.equal(message.content[0].text, 'Yes.');
});

test('what breaks off in the middle fails, and says so to the helper too', async () => {
  const events = await all(await ask('break off', { stream: true })).catch((error) => error);
  if (Array.isArray(events)) {
    const { type, response } = events.at(-1);
    assert.equal(type, 'response.failed');
    assert.equal(response.error.code, 'server_error');
    assert.equal((await responses.retrieve(response.id)).status, 'failed');
  } else {
    assert.ok(events instanceof OpenAI.APIError, events);
  }
});

test('images are passed on', async () => {
  const image = { type: 'input_image', detail: 'auto', image_url: 'https://example.org/a.png' };
  const content = [{ type: 'input_text', text: 'count pictures' }, image];
  assert.equal((await ask([{ role: 'user', content }])).output_text, '1');
});

test('the tokens of an input, and a conversation made short', async () => {
  const counted = await responses.inputTokens.count({ model: MODEL, input: 'hello' });
  assert.ok(counted.input_tokens > 0);
  const made = await responses.compact({ model: MODEL, input: 'hello' });
  assert.equal(made.object, 'response.compaction');
  assert.equal(made.output.at(-1).type, 'compaction');
  assert.ok((await ask([...made.output, { role: 'user', content: 'go on' }])).output_text);
});
