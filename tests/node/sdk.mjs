// What the tests share: the official SDK as anyone has it, with nothing but its environment
// variables (OPENAI_BASE_URL, OPENAI_API_KEY), and a model that does as the newest message says.

import { test as nodeTest } from 'node:test';
import OpenAI from 'openai';

export const MODEL = 'scripted';

export const client = new OpenAI({ maxRetries: 0 });

/** A client as it is out of the box: it sends again by itself. `tries` has what it sent. */
export function eager(options = {}) {
  const tries = [];
  const counting = (url, init) => {
    tries.push(new Headers(init.headers));
    return fetch(url, init);
  };
  return { eager: new OpenAI({ fetch: counting, ...options }), tries };
}

/** A test that is told of by its name when it hangs. */
export const test = (name, body) => nodeTest(name, { timeout: 15_000 }, body);

/** All that an iterator gives. */
export async function all(iterator) {
  const found = [];
  for await (const one of iterator) found.push(one);
  return found;
}

/** The error with which something fails. */
export async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('it did not fail');
}

export const textOf = (items) =>
  items.map((item) => item.content.map((part) => part.text).join(''));

export const weather = {
  type: 'function',
  name: 'weather',
  description: 'The weather of a town',
  parameters: {
    type: 'object',
    properties: { town: { type: 'string' } },
    required: ['town'],
    additionalProperties: false,
  },
  strict: true,
};
